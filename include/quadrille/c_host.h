/* SPDX-License-Identifier: Apache-2.0
 *
 * The W4A8 layers of c_api.h on a CPU, as C functions: the same arithmetic, host memory, no GPU and no driver. Also the
 * ways of a weight: quantise, prepare and back, the conversions of scales. c_api.h has the conventions: results,
 * errors, structs that begin with their size.
 *
 * - Every call returns when its work is done. Handles may be used from many threads at once and freed in any order:
 *   each keeps what it was made of.
 * - The threads of a qd_host do not come along when a process forks: the child's calls with it, and with what was made
 *   of it, are QD_INVALID_ARGUMENT. It may free the handles.
 */
#ifndef QUADRILLE_C_HOST_H
#define QUADRILLE_C_HOST_H

#include "quadrille/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* --- Where to compute: threads and a table of kernels ----------------------------------------------------------------
 */

typedef struct qd_host qd_host;

/* num_threads 0: one for each usable core; threads beyond the usable cores are left out. kernels: a table by name
 * ("generic", "avx2", "avx512", "amx", ...); null or "": the best that runs here. Errors: QD_INVALID_ARGUMENT with the
 * names, QD_UNSUPPORTED with what this CPU lacks. */
QD_API qd_result qd_host_create(int32_t num_threads, const char* kernels, qd_host** host, qd_error* error);
QD_API void qd_host_destroy(qd_host* host);
QD_API const char* qd_host_kernels(const qd_host* host); /* the table's name; static */
QD_API int32_t qd_host_num_threads(const qd_host* host);

/* --- Tensors in host memory ------------------------------------------------------------------------------------------
 */

enum {
  QD_TYPE_BF16 = 0,
  QD_TYPE_F16 = 1,
  QD_TYPE_F32 = 2,
  QD_TYPE_E4M3 = 3, /* bytes */
  QD_TYPE_I32 = 4,  /* words of eight codes, and ids */
  QD_TYPE_I8 = 5,
  QD_TYPE_U8 = 6
};

/* Rank 0 to 4; strides count elements and may be 0 or negative; elements lie at multiples of their size. */
typedef struct qd_tensor {
  const void* data;
  int32_t type; /* QD_TYPE_... */
  int32_t rank;
  int64_t shape[4];
  int64_t strides[4];
} qd_tensor;

/* --- Weights and layers ----------------------------------------------------------------------------------------------
 */

typedef struct qd_host_weights qd_host_weights; /* prepared for the tables of the CPU */

/* `desc` as of qd_weights_prepare, with on_host set; n and k of any size that qd_weights_desc allows. in_place: the
 * prepared codes lie in the memory of desc->codes, which is overwritten and must stay until the weights are destroyed
 * and the layers of them are; scales and biases are copied. It needs QD_SOURCE_UINT4B8 or QD_SOURCE_INT4, 64-byte
 * aligned matrices, k a multiple of 32, part_n * num_parts one of 16 and the parts of an expert one behind the other:
 * else QD_UNSUPPORTED. Nothing is overwritten before every scale was checked.
 * Errors: QD_INVALID_DATA for a scale that is NaN or infinite and an int8 code outside of -8..7, by expert and place.
 */
QD_API qd_result qd_host_weights_prepare(const qd_host* host, const qd_weights_desc* desc, int32_t in_place,
                                         qd_host_weights** weights, qd_error* error);
/* Every error of the call above with in_place set, and nothing made or overwritten: for matrices that are to be
 * prepared together or not at all. */
QD_API qd_result qd_host_weights_check_in_place(const qd_weights_desc* desc, qd_error* error);
QD_API void qd_host_weights_destroy(qd_host_weights* weights);
/* Memory of codes, scales and biases, wherever it lies. */
QD_API uint64_t qd_host_weights_bytes(const qd_host_weights* weights);

typedef struct qd_host_mlp {
  const qd_host_weights* gate_up;
  const qd_host_weights* down;
  int32_t activation; /* QD_ACTIVATION_... */
  float alpha, limit, up_offset;
} qd_host_mlp;

/* As qd_layer_desc; every expert of the router is here. */
typedef struct qd_host_layer_desc {
  size_t struct_size;
  int32_t rounding; /* QD_ROUND_... */
  int32_t scoring;
  int64_t num_experts;
  int64_t top_k;
  int32_t renormalise;
  float renorm_epsilon;
  float routed_scaling;
  int64_t num_groups, groups_kept;
  int32_t weight_on_input;
  const float* correction_bias; /* [num_experts] or null; copied */
  qd_host_mlp experts;
  qd_host_mlp shared;             /* null weights: none */
  const void* shared_gate_weight; /* [hidden] bf16 or null; copied */
} qd_host_layer_desc;
static inline void qd_host_layer_desc_init(qd_host_layer_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->routed_scaling = 1.0f;
  desc->num_groups = 1;
  desc->groups_kept = 1;
  desc->experts.alpha = desc->shared.alpha = 1.702f;
  desc->experts.limit = desc->shared.limit = 7.0f;
  desc->experts.up_offset = desc->shared.up_offset = 1.0f;
}

typedef struct qd_host_layer qd_host_layer;

QD_API qd_result qd_host_layer_create(const qd_host* host, const qd_host_layer_desc* desc, qd_host_layer** layer,
                                      qd_error* error);
QD_API void qd_host_layer_destroy(qd_host_layer* layer);

typedef struct qd_host_batch {
  size_t struct_size;
  int64_t num_tokens;
  int32_t type;               /* of x and out: QD_TYPE_BF16 or QD_TYPE_F32 */
  const void* x;              /* [num_tokens, hidden]; fp32 is rounded to bf16 first where the layer rounds */
  const float* router_logits; /* [num_tokens, num_experts]; or, where null: */
  const int32_t* topk_ids;    /* [num_tokens, top_k], -1: nowhere */
  const float* topk_weights;  /* [num_tokens, top_k] */
  void* out;                  /* [num_tokens, hidden]; may be x; bf16 is rounded to nearest even */
} qd_host_batch;
static inline void qd_host_batch_init(qd_host_batch* batch) {
  memset(batch, 0, sizeof *batch);
  batch->struct_size = sizeof *batch;
}
/* QD_INVALID_ARGUMENT for an id outside of -1..num_experts-1. */
QD_API qd_result qd_host_layer_run(const qd_host_layer* layer, const qd_host_batch* batch, qd_error* error);

/* Weights of one expert and one part: x [num_rows, k] -> out [num_rows, n], both of `type`; with the bias of the
 * weights. */
QD_API qd_result qd_host_linear_run(const qd_host* host, const qd_host_weights* weights, int32_t rounding, int32_t type,
                                    const void* x, int64_t num_rows, void* out, qd_error* error);

/* --- Preparation to bytes and back -----------------------------------------------------------------------------------
 */

enum {
  QD_LAYOUT_CPU = 0,   /* src/layout/w4_lanes16.h: what the tables of the CPU read */
  QD_LAYOUT_HOPPER = 1 /* src/layout/w4_hopper64.h: what the Hopper kernels read, byte for byte */
};

/* Head of prepared bytes: 128 bytes in the order of this machine, then each expert at a multiple of 64: codes and
 * scales in the layout, then for QD_NUMERICS_VLLM the channel scales in fp32. */
typedef struct qd_prepared_info {
  size_t struct_size;
  int32_t layout;
  int32_t numerics;
  int64_t num_experts, num_parts;
  int64_t part_n, k, group_size;
  uint64_t bytes; /* all of it */
} qd_prepared_info;
static inline void qd_prepared_info_init(qd_prepared_info* info) {
  memset(info, 0, sizeof *info);
  info->struct_size = sizeof *info;
}

/* Bytes that qd_host_prepare makes of the description. Reads no weights: codes and scales may be null. */
QD_API qd_result qd_host_prepared_bytes(const qd_weights_desc* desc, int32_t layout, uint64_t* bytes, qd_error* error);
/* `desc` as of qd_host_weights_prepare, without biases. `memory` has `bytes` bytes, 64-byte aligned. */
QD_API qd_result qd_host_prepare(const qd_host* host, const qd_weights_desc* desc, int32_t layout, void* memory,
                                 uint64_t bytes, qd_error* error);
/* What the bytes are, after a look at their checksum. QD_INVALID_DATA with expected and found. */
QD_API qd_result qd_prepared_read_info(const void* memory, uint64_t bytes, qd_prepared_info* info, qd_error* error);
/* Back to what a checkpoint has: codes [num_experts, num_parts * part_n, k/8] uint4b8 words; scales [num_experts,
 * num_parts * part_n, groups] bf16, or null: those of QD_NUMERICS_VLLM were rounded and do not come back
 * (QD_UNSUPPORTED). */
QD_API qd_result qd_host_unprepare(const void* memory, uint64_t bytes, uint32_t* codes, uint16_t* scales,
                                   qd_error* error);

/* --- Quantisation ----------------------------------------------------------------------------------------------------
 */

/* weight: bf16, fp16 or fp32 of rank 1 to 4, its last dimension k. codes [.., ceil(k / 8)] uint4b8 words; scales
 * [.., groups] bf16: bf16(absmax / 7.5) of each group, symmetric, 2^-7 for a group of zeros. group_size 32, 64 or 128
 * that divides k, 0: one scale a row. QD_INVALID_DATA for a weight that is NaN or infinite, by row and column. */
QD_API qd_result qd_quantize(const qd_host* host, const qd_tensor* weight, int64_t group_size, int32_t quotient,
                             uint32_t* codes, uint16_t* scales, qd_error* error);

/* --- Conversions of the `vllm` numerics
 * -------------------------------------------------------------------------------- Rank 1 to 4, contiguous or not;
 * leading dimensions are rows. Results are contiguous, in the shape that is named. */

/* scales [.., groups] bf16 (rank 1: one row). channel_scale, channel_scale8 [..]: max(max_g |s| / 448, 1 / (448 * 512))
 * and 8 times that; group_scale, group_scale8 [.., groups] e4m3: E4(s / channel_scale), and E4(that / 8). Any of the
 * four may be null. QD_INVALID_DATA: a scale that is NaN or infinite. */
QD_API qd_result qd_scales_split(const qd_tensor* scales, float* channel_scale, float* channel_scale8,
                                 uint8_t* group_scale, uint8_t* group_scale8, qd_error* error);
/* group_scale8 [..] e4m3 -> tables [.., 8] e4m3 of s * -8 ... s * -1. */
QD_API qd_result qd_scales_tables(const qd_tensor* group_scale8, uint8_t* tables, qd_error* error);
/* group_scale8 [.., n, groups] e4m3 -> tables [.., groups, n, 8] e4m3: the order of the grouped kernels. Rank 2 to 4.
 */
QD_API qd_result qd_scales_packed_tables(const qd_tensor* group_scale8, uint8_t* tables, qd_error* error);

enum {
  QD_WORDS_FLIP_SIGN = 0, /* uint4b8 <-> two's complement: XOR 8 on every nibble */
  QD_WORDS_UNIFIED = 1    /* two's complement <-> unified codes: 1..7 and 8 - that change places */
};
/* words [.., k / 8] int32 -> the same shape. Each conversion is its own inverse. */
QD_API qd_result qd_words_convert(const qd_tensor* words, int32_t conversion, uint32_t* converted, qd_error* error);
/* words [.., n, k / 8] int32 -> the same shape in the order of the other engine's kernels. n a multiple of 16, k of 32,
 * else QD_UNSUPPORTED. Rank 2 to 4. */
QD_API qd_result qd_words_reorder(const qd_tensor* words, uint32_t* reordered, qd_error* error);
/* words [.., k / 8] two's complement and group_scale8 [.., groups] e4m3 of the same leading dimensions -> bytes [..,
 * k]: E4(s8 * q), 0x00 where q is 0. group_size 0: one scale a row. */
QD_API qd_result qd_words_to_e4m3(const qd_tensor* words, const qd_tensor* group_scale8, int64_t group_size,
                                  uint8_t* bytes, qd_error* error);

#ifdef __cplusplus
}
#endif

#endif /* QUADRILLE_C_HOST_H */
