/* SPDX-License-Identifier: Apache-2.0
 *
 * W4A8 Mixture-of-Experts layers on Hopper, as C functions over opaque handles. Standard headers only.
 *
 * - Streams and events are CUDA handles (cudaStream_t, cudaEvent_t) as void*; the default stream is refused. Work is
 *   enqueued and the call returns; the functions that wait say so in their names.
 * - Every function that can fail returns a qd_result and, where `error` is not null, fills it: what was expected, what
 * was found, what to do. An option that is not supported is an error before any work.
 * - Structs begin with their size: fill them with the qd_..._init() beside them first.
 * - A thread chooses its GPU with qd_device_use(); handles belong to the GPU that was chosen when they were made.
 * - Different objects may be used from different threads; one object from one thread at a time, but for qd_layer_run,
 *   qd_layer_run_masked and qd_linear_run, which may run at once with workspaces and events of their own.
 */
#ifndef QUADRILLE_C_API_H
#define QUADRILLE_C_API_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QD_API __attribute__((visibility("default")))
#else
#define QD_API
#endif

typedef enum qd_result {
  QD_OK = 0,
  QD_INVALID_ARGUMENT = 1, /* the call has no meaning: shapes that disagree, null or misaligned pointers */
  QD_INVALID_DATA = 2,     /* weights that break the rules of their format */
  QD_UNSUPPORTED = 3,      /* well formed, but not run here: an option, a shape, a machine without a Hopper GPU */
  QD_NOT_FOUND = 4,
  QD_IO = 5, /* the driver refused */
  QD_CAPACITY = 6,
  QD_CANCELLED = 7,
  QD_INTERNAL = 100 /* a bug of this library, or a device that no longer answers */
} qd_result;

typedef struct qd_error {
  qd_result code;
  char message[1020];
} qd_error;

QD_API const char* qd_version(void);
QD_API const char* qd_result_name(qd_result status);

/* Bytes that the library made, with a zero behind them that `size` does not count. Text and JSON are UTF-8. */
typedef struct qd_string {
  char* data;
  size_t size;
} qd_string;
/* Null, and one that holds nothing, are fine; it holds nothing afterwards. */
QD_API void qd_string_free(qd_string* string);

/* How far long work has come. `report` is called on the thread that made the call: at once, about every 50 ms, whether
 * or not anything moved, and at the end. `done` of `total` in the unit that the call names, at `what` (never null). A
 * value other than 0 stops the work, and the call ends with QD_CANCELLED. It must not free what the work is for. */
typedef struct qd_progress {
  int32_t (*report)(void* context, const char* what, uint64_t done, uint64_t total);
  void* context;
} qd_progress;

/* --- Devices, streams, memory --------------------------------------------------------------------------------------
 */

typedef struct qd_device_info {
  size_t struct_size;
  char name[256];
  int32_t major, minor; /* compute capability */
  int32_t num_sms;
  int32_t driver_version; /* 13000 is 13.0 */
  uint64_t total_bytes, free_bytes;
} qd_device_info;
static inline void qd_device_info_init(qd_device_info* info) {
  memset(info, 0, sizeof *info);
  info->struct_size = sizeof *info;
}

QD_API qd_result qd_device_count(int32_t* count, qd_error* error);
/* QD_OK when our kernels run on this GPU. */
QD_API qd_result qd_device_available(int32_t ordinal, qd_error* error);
QD_API qd_result qd_device_get_info(int32_t ordinal, qd_device_info* info, qd_error* error);
/* The calling thread's GPU from here on. */
QD_API qd_result qd_device_use(int32_t ordinal, qd_error* error);
QD_API qd_result qd_device_current(int32_t* ordinal, qd_error* error);

/* For programs without CUDA headers; streams and events from elsewhere serve as well. */
QD_API qd_result qd_stream_create(void** stream, qd_error* error); /* non-blocking */
QD_API void qd_stream_destroy(void* stream);
QD_API qd_result qd_stream_synchronize(void* stream, qd_error* error);
QD_API qd_result qd_event_create(void** event, qd_error* error); /* without timing */
QD_API void qd_event_destroy(void* event);
QD_API qd_result qd_event_record(void* event, void* stream, qd_error* error);
QD_API qd_result qd_stream_wait_event(void* stream, void* event, qd_error* error);
/* What is enqueued on `stream` from here on runs behind what is on `leader` now. Either may be a default stream (null
 * or CUDA's special handles): the one place where a caller's default stream meets a stream of its own. */
QD_API qd_result qd_stream_follow(void* stream, void* leader, qd_error* error);
/* 1 in `captured` where calls on the stream are being captured into a graph. */
QD_API qd_result qd_stream_captured(void* stream, int32_t* captured, qd_error* error);

/* Device memory of the stream-ordered pool, 256-byte aligned. */
QD_API qd_result qd_memory_allocate(size_t bytes, void* stream, void** memory, qd_error* error);
QD_API void qd_memory_release(void* memory, void* stream);
/* Enqueued on the stream: pageable host memory may be staged, page-locked memory is read when the copy runs. */
QD_API qd_result qd_copy_to_device(void* device, const void* host, size_t bytes, void* stream, qd_error* error);
QD_API qd_result qd_copy_to_host(void* host, const void* device, size_t bytes, void* stream, qd_error* error);
QD_API qd_result qd_memory_fill(void* device, int32_t byte, size_t bytes, void* stream, qd_error* error);

/* The caller's memory for prepared weights. allocate: 256-byte aligned, usable on `stream` from here on, null when
 * there is none. */
typedef struct qd_allocator {
  void* context;
  void* (*allocate)(void* context, size_t bytes, void* stream);
  void (*release)(void* context, void* memory, size_t bytes, void* stream);
} qd_allocator;

/* --- Weights -------------------------------------------------------------------------------------------------------
 */

enum { QD_NUMERICS_EXACT = 0, QD_NUMERICS_VLLM = 1 };
/* Intermediate values of the host: rounded to bf16 where a bf16 engine does it, or nowhere. A GPU has the first. */
enum { QD_ROUND_BF16 = 0, QD_ROUND_F32 = 1 };
/* Quantising: how weight / scale is rounded before it becomes an integer. */
enum { QD_QUOTIENT_F32 = 0, QD_QUOTIENT_BF16 = 1 };

enum {
  QD_SOURCE_UINT4B8 = 0, /* [n, k/8] 32-bit words, nibble = q + 8, lowest nibble = lowest k */
  QD_SOURCE_INT4 = 1,    /* [n, k/8] 32-bit words, two's complement nibbles */
  QD_SOURCE_INT8 = 2     /* [n, k] bytes, -8..7 */
};

/* Bits of a status word in device memory: set by kernels, never cleared by them. */
enum {
  QD_FLAG_BAD_EXPERT_ID = 1,   /* an id outside of -1..experts-1; it counted as -1 */
  QD_FLAG_BAD_SCALE = 2,       /* preparation: a scale that is NaN or infinite */
  QD_FLAG_BAD_CODE = 4,        /* preparation: an int8 code outside of -8..7 */
  QD_FLAG_BAD_MASKED_COUNT = 8 /* masked layout: a count outside of 0..max_m */
};

/* `num_experts` matrices of one shape as a checkpoint has them. Gate and up are two parts of one matrix; a bias is fp32
 * [part_n]; scales are bf16 [part_n, groups]. Arrays have num_experts * num_parts pointers, part p of expert e at
 * e * num_parts + p, to device memory or, with on_host, to host memory that stays until the preparation is done. */
typedef struct qd_weights_desc {
  size_t struct_size;
  int32_t source;   /* QD_SOURCE_... */
  int32_t numerics; /* QD_NUMERICS_... */
  int64_t num_experts;
  int64_t num_parts;  /* 1, or 2: gate and up */
  int64_t part_n;     /* out features of a part, a multiple of 8 */
  int64_t k;          /* in features, a multiple of the group size, or of 8 with one scale a channel */
  int64_t group_size; /* 32, 64, 128; 0: one scale a channel */
  const void* const* codes;
  const void* const* scales;
  const void* const* bias; /* or null: none */
  int32_t on_host;
} qd_weights_desc;
static inline void qd_weights_desc_init(qd_weights_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->num_experts = 1;
  desc->num_parts = 1;
}

typedef struct qd_weights qd_weights; /* prepared weights on the device */

/* Device memory that the weights take, and what the preparation takes besides until it is done. */
QD_API qd_result qd_weights_bytes(const qd_weights_desc* desc, size_t* bytes, size_t* staging_bytes, qd_error* error);

/* Enqueues the preparation: on `stream`, and copies from the host on `copy_stream` (null for device sources). Sources
 * on the device must be ready in the order of `stream`. `allocator`: null for the pool of the device. */
QD_API qd_result qd_weights_prepare(const qd_weights_desc* desc, const qd_allocator* allocator, void* stream,
                                    void* copy_stream, qd_weights** weights, qd_error* error);
/* Makes `stream` wait for the preparation. The run functions do it themselves. */
QD_API qd_result qd_weights_wait(const qd_weights* weights, void* stream, qd_error* error);
/* 1 in `prepared` when the preparation is done, and its sources are no longer read. Never waits. */
QD_API qd_result qd_weights_prepared(const qd_weights* weights, int32_t* prepared, qd_error* error);
/* The host waits for the preparation; `flags` (or null): its status word. `stream` carries the read. */
QD_API qd_result qd_weights_synchronize(const qd_weights* weights, void* stream, uint32_t* flags, qd_error* error);
/* Releases the memory in the order of `stream`, which comes after the last use. Null weights are fine. */
QD_API void qd_weights_destroy(qd_weights* weights, void* stream);

/* --- The layer -----------------------------------------------------------------------------------------------------
 */

enum { QD_SCORING_SOFTMAX_BEFORE_TOPK = 0, QD_SCORING_SOFTMAX_AFTER_TOPK = 1, QD_SCORING_SIGMOID = 2 };

enum {
  QD_ACTIVATION_SILU = 0,           /* silu(gate) * up */
  QD_ACTIVATION_CLAMPED_SWIGLU = 1, /* gpt-oss: alpha, limit, up_offset */
  QD_ACTIVATION_GELU_TANH = 2,      /* gelu(gate) * up */
  QD_ACTIVATION_RELU2 = 3           /* not gated: max(x, 0)^2; gate_up has one part */
};

/* Experts of one shape: gate_up [2 * width, hidden], down [hidden, width]. The weights must outlive the layer. */
typedef struct qd_mlp {
  const qd_weights* gate_up;
  const qd_weights* down;
  int32_t activation;
  float alpha, limit, up_offset;
} qd_mlp;

typedef struct qd_layer_desc {
  size_t struct_size;
  int32_t scoring;
  int64_t num_experts; /* of the router */
  int64_t top_k;
  int32_t renormalise;
  float renorm_epsilon;
  float routed_scaling;
  int64_t num_groups, groups_kept;
  int32_t weight_on_input;
  const float* correction_bias; /* device [num_experts] or null */
  const int32_t* expert_map;    /* device [num_experts] -> expert here or -1; null: all are here */
  qd_mlp experts;
  qd_mlp shared;                  /* one expert as wide as all shared experts together; null weights: none */
  const void* shared_gate_weight; /* device [hidden] bf16: sigmoid gate; null: 1 */
} qd_layer_desc;
static inline void qd_layer_desc_init(qd_layer_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->routed_scaling = 1.0f;
  desc->num_groups = 1;
  desc->groups_kept = 1;
  desc->experts.alpha = desc->shared.alpha = 1.702f;
  desc->experts.limit = desc->shared.limit = 7.0f;
  desc->experts.up_offset = desc->shared.up_offset = 1.0f;
}

typedef struct qd_layer qd_layer;

QD_API qd_result qd_layer_create(const qd_layer_desc* desc, qd_layer** layer, qd_error* error);
QD_API void qd_layer_destroy(qd_layer* layer);

/* Whether calls with up to max_tokens tokens run, and the device memory that they need, 256-byte aligned. */
QD_API qd_result qd_layer_can_run(const qd_layer* layer, int64_t max_tokens, qd_error* error);
QD_API qd_result qd_layer_workspace_bytes(const qd_layer* layer, int64_t max_tokens, size_t* bytes, qd_error* error);

typedef struct qd_batch {
  size_t struct_size;
  int64_t num_tokens;
  const void* x;              /* [num_tokens, hidden] bf16, 16-byte aligned */
  const float* router_logits; /* [num_tokens, num_experts]; or, where null: */
  const int32_t* topk_ids;    /* [num_tokens, top_k], -1: nowhere */
  const float* topk_weights;  /* [num_tokens, top_k] */
  void* out;                  /* [num_tokens, hidden] bf16, 16-byte aligned; may be x */
} qd_batch;
static inline void qd_batch_init(qd_batch* batch) {
  memset(batch, 0, sizeof *batch);
  batch->struct_size = sizeof *batch;
}

/* `side` and the two events: where a layer with a shared expert runs it beside the routed ones; null: on `main`. */
typedef struct qd_streams {
  size_t struct_size;
  void* main;
  void* side;
  void* shared_begins;
  void* shared_ends;
} qd_streams;
static inline void qd_streams_init(qd_streams* streams) {
  memset(streams, 0, sizeof *streams);
  streams->struct_size = sizeof *streams;
}

/* Enqueues the layer; allocates nothing, waits for nothing, may be captured into a graph once the weights are prepared.
 * `workspace` belongs to the call until its work is done. `flags`: device word of QD_FLAG_ bits, or null. */
QD_API qd_result qd_layer_run(const qd_layer* layer, const qd_batch* batch, void* workspace, size_t workspace_bytes,
                              const qd_streams* streams, uint32_t* flags, qd_error* error);

/* Rows that were quantised and sent here by others: expert e has rows [0, masked_m[e]) of its max_m. */
typedef struct qd_masked_batch {
  size_t struct_size;
  int64_t max_m;
  const void* act;         /* [experts, max_m, hidden] e4m3, 16-byte aligned; hidden a multiple of 16 */
  const float* act_scale;  /* [experts, ceil(hidden / 128), max_m] */
  const int32_t* masked_m; /* [experts] */
  void* out;               /* [experts, max_m, hidden] bf16; rows behind masked_m stay as they are */
} qd_masked_batch;
static inline void qd_masked_batch_init(qd_masked_batch* batch) {
  memset(batch, 0, sizeof *batch);
  batch->struct_size = sizeof *batch;
}
QD_API qd_result qd_layer_can_run_masked(const qd_layer* layer, int64_t max_m, qd_error* error);
QD_API qd_result qd_layer_masked_workspace_bytes(const qd_layer* layer, int64_t max_m, size_t* bytes, qd_error* error);
QD_API qd_result qd_layer_run_masked(const qd_layer* layer, const qd_masked_batch* batch, void* workspace,
                                     size_t workspace_bytes, const qd_streams* streams, uint32_t* flags,
                                     qd_error* error);

/* --- One linear layer: weights of one expert. x [num_rows, k] bf16, out [num_rows, n] bf16. -------------------------
 */

QD_API qd_result qd_linear_workspace_bytes(const qd_weights* weights, int64_t max_rows, size_t* bytes, qd_error* error);
QD_API qd_result qd_linear_run(const qd_weights* weights, const void* x, int64_t num_rows, void* out, void* workspace,
                               size_t workspace_bytes, void* stream, qd_error* error);

#ifdef __cplusplus
}
#endif

#endif /* QUADRILLE_C_API_H */
