/* SPDX-License-Identifier: Apache-2.0
 *
 * Whole models as C functions: what a folder holds, planning, quantising and preparing folders, tokenizers, and a model
 * in memory with an engine that answers many requests at once. c_api.h has the conventions: results, errors, structs
 * that begin with their size.
 *
 * - Paths, text and JSON are UTF-8. A (pointer, size) pair needs no zero at its end; a null pointer with size 0 is
 *   empty. JSON that a function gives is one object or list in a qd_string, which the caller frees.
 * - Tokenizers and models may be used from many threads at once. A handle may be freed once no call is using it, and
 *   handles in any order: a tokenizer taken from a model lives on without it.
 * - Nothing here reads from or changes the caller's choice of a GPU (qd_device_use), nor its signal handlers: the
 *   threads of a model block every signal.
 */
#ifndef QUADRILLE_C_MODEL_H
#define QUADRILLE_C_MODEL_H

#include "quadrille/c_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Token ids that the library made. */
typedef struct qd_ids {
  int32_t* data;
  int64_t size;
} qd_ids;
/* Null, and one that holds nothing, are fine; it holds nothing afterwards. */
QD_API void qd_ids_free(qd_ids* ids);

/* --- Folders and plans ---------------------------------------------------------------------------------------------
 */

/* What a model folder holds, from its headers alone: {"config", "quantization_format", "parameters", "disk_bytes",
 * "modules": [...], "tensor_parallel": [...], ...}, as `quadrille inspect --json` prints it. Errors: QD_NOT_FOUND and
 * QD_INVALID_DATA with file and tensor, QD_UNSUPPORTED for a model that does not run. */
QD_API qd_result qd_describe_folder(const char* folder, qd_string* json, qd_error* error);

/* For 1 to max_ranks (at most 64) tensor-parallel ranks: [{"ranks", "legal", "even", "reasons": [...]}]. `model`: a
 * folder of which config.json alone is read, or the name of a published shape ("qwen3-30b-a3b"). */
QD_API qd_result qd_legal_tp(const char* model, int32_t max_ranks, qd_string* json, qd_error* error);

enum { QD_ATTENTION_DIVIDED = 0, QD_ATTENTION_REPLICATED = 1 };

typedef struct qd_plan_desc {
  size_t struct_size;
  const char* model; /* as for qd_legal_tp */
  const char* gpu;   /* "h100", "h200", "h20" */
  int32_t gpus;      /* 0: tp * ep */
  int32_t tp, ep;    /* 0: every one that is legal */
  int32_t gpus_per_host;
  int64_t decode_tokens;  /* sequences that decode together, over all GPUs */
  int64_t context;        /* positions of each */
  int64_t prefill_tokens; /* of a prefill step, over all GPUs */
  int64_t group_size;     /* 32, 64, 128, 0: one scale a channel; -1: the folder's own, or 128 */
  double gpu_memory_gib;  /* that a rank may use; 0: the GPU's less 2 */
  int32_t attention;      /* QD_ATTENTION_...: over expert-parallel groups */
} qd_plan_desc;
static inline void qd_plan_desc_init(qd_plan_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->gpu = "h100";
  desc->gpus_per_host = 8;
  desc->decode_tokens = 256;
  desc->context = 4096;
  desc->prefill_tokens = 4096;
  desc->group_size = -1;
}

/* Memory, traffic and predicted step time of every legal grid of ranks, as `quadrille plan --json` prints it: "best"
 * and "smallest_that_fits" are null where none fits. docs/scaling.md has the formulas. Pure arithmetic. Errors:
 * QD_NOT_FOUND (names the shapes), QD_INVALID_ARGUMENT, QD_UNSUPPORTED where no grid is legal (says why). */
QD_API qd_result qd_plan(const qd_plan_desc* desc, qd_string* json, qd_error* error);

/* --- Making folders ------------------------------------------------------------------------------------------------
 */

typedef struct qd_quantize_desc {
  size_t struct_size;
  const char* in;            /* folder in bf16, f16 or f32 */
  const char* out;           /* must not exist; appears when it is whole */
  int64_t group_size;        /* 32, 64, 128; 0: one scale a channel */
  int32_t quotient;          /* QD_QUOTIENT_...: how weight / scale is rounded first (docs/numerics.md) */
  int32_t threads;           /* 0: one for each usable core */
  const char* const* ignore; /* 're:REGEX' or module paths that stay as they are, beside head and gates */
  size_t num_ignore;
} qd_quantize_desc;
static inline void qd_quantize_desc_init(qd_quantize_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->group_size = 128;
}

/* A compressed-tensors W4A8 folder from an unquantised one; `report`, or null: the JSON of `quadrille quantize --json`.
 * Progress: bytes of the input, at a tensor. Errors: QD_INVALID_ARGUMENT (OUT exists, a group size that does not divide
 * a K), QD_UNSUPPORTED (already quantised), QD_INVALID_DATA, QD_IO, QD_CANCELLED: then nothing is left. */
QD_API qd_result qd_quantize_folder(const qd_quantize_desc* desc, const qd_progress* progress, qd_string* report,
                                    qd_error* error);

typedef struct qd_prepare_desc {
  size_t struct_size;
  const char* in;                 /* folder of a checkpoint */
  const char* out;                /* must not exist; appears when it is whole */
  int32_t numerics;               /* QD_NUMERICS_...: the folder runs in this one alone */
  int32_t run_weight_only_as_fp8; /* a W4A16 checkpoint is taken as W4A8 instead of being refused */
  int32_t round_scales;           /* scales that bf16 does not hold are rounded instead of being refused */
  int32_t threads;                /* 0: one for each usable core */
} qd_prepare_desc;
static inline void qd_prepare_desc_init(qd_prepare_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
}

/* A folder that opens as a mapping (docs/prepared.md); `report`, or null: the JSON of `quadrille prepare --json`.
 * Progress: bytes of the checkpoint, at a module. Errors: those of qd_model_load() for the checkpoint; as above. */
QD_API qd_result qd_prepare_folder(const qd_prepare_desc* desc, const qd_progress* progress, qd_string* report,
                                   qd_error* error);

/* --- Tokenizers ----------------------------------------------------------------------------------------------------
 */

typedef struct qd_tokenizer qd_tokenizer;

/* Of a model folder: tokenizer.json and, where they are there, tokenizer_config.json, special_tokens_map.json and
 * chat_template.jinja. Errors name file and key. */
QD_API qd_result qd_tokenizer_load(const char* folder, qd_tokenizer** tokenizer, qd_error* error);
QD_API void qd_tokenizer_free(qd_tokenizer* tokenizer);

/* {"vocab_size", "bos_id", "eos_id" (null: none), "special_ids": [...], "has_chat_template"}. */
QD_API qd_result qd_tokenizer_describe(const qd_tokenizer* tokenizer, qd_string* json, qd_error* error);

/* add_special: with what the tokenizer puts around a text (a BOS). parse_special: special tokens that stand in the text
 * become their ids; 0 keeps them text, for what strangers wrote. Errors: QD_INVALID_ARGUMENT with the byte offset of
 * what is no UTF-8. */
QD_API qd_result qd_tokenizer_encode(const qd_tokenizer* tokenizer, const char* text, size_t text_size,
                                     int32_t add_special, int32_t parse_special, qd_ids* ids, qd_error* error);
/* Bytes that are no UTF-8 become U+FFFD; ids without a token give no text. Errors: QD_INVALID_ARGUMENT for negative
 * ids. */
QD_API qd_result qd_tokenizer_decode(const qd_tokenizer* tokenizer, const int32_t* ids, int64_t num_ids,
                                     int32_t skip_special, qd_string* text, qd_error* error);
/* The id of a token as it stands in the vocabulary; -1: there is none. */
QD_API qd_result qd_tokenizer_token_id(const qd_tokenizer* tokenizer, const char* token, size_t token_size, int32_t* id,
                                       qd_error* error);
/* The token of an id as it stands in the vocabulary; "" where there is none. */
QD_API qd_result qd_tokenizer_token_text(const qd_tokenizer* tokenizer, int32_t id, qd_string* text, qd_error* error);

/* The prompt of a conversation by the model's chat template: messages_json is [{"role", "content", ...}, ...];
 * variables_json, or null, an object that goes to the template ("tools", "enable_thinking"). Encode the result with
 * add_special 0: templates write BOS themselves. Errors: QD_NOT_FOUND without a template, QD_INVALID_ARGUMENT for what
 * is no such JSON or where the template refuses, QD_CAPACITY. */
QD_API qd_result qd_tokenizer_render_chat(const qd_tokenizer* tokenizer, const char* messages_json,
                                          size_t messages_size, int32_t add_generation_prompt,
                                          const char* variables_json, size_t variables_size, qd_string* prompt,
                                          qd_error* error);

/* --- Models --------------------------------------------------------------------------------------------------------
 */

typedef struct qd_model_desc {
  size_t struct_size;
  const char* folder;             /* a checkpoint or a prepared folder */
  const char* device;             /* "cpu", "cuda", "cuda:N": the first of the GPUs, one a rank */
  const char* kernels;            /* a table of the CPU ("avx512"); null: the best that runs here */
  const char* gpu_memory;         /* that a GPU may use: "20GiB", "0.8"; null: all that is free */
  int32_t numerics;               /* QD_NUMERICS_... */
  int32_t rounding;               /* QD_ROUND_...: F32 on the CPU alone, for comparing with fp32 */
  int32_t threads;                /* of all ranks; 0: one for each usable core */
  int32_t tp;                     /* tensor-parallel ranks, as threads of this process */
  int32_t run_weight_only_as_fp8; /* as in qd_prepare_desc */
  int32_t round_scales;
  int32_t prefix_cache;     /* positions that prompts share are computed once */
  int64_t cache_tokens;     /* positions of the key/value cache; 0: max_sequences of up to 8,192, within about 2 GiB */
  int64_t max_sequences;    /* requests that run at the same time; others wait. Neither changes an answer. */
  int64_t max_batch_tokens; /* of one step */
} qd_model_desc;
static inline void qd_model_desc_init(qd_model_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->device = "cpu";
  desc->tp = 1;
  desc->max_sequences = 64;
  desc->max_batch_tokens = 512;
}

/* Weights, tokenizer (where the folder has one), engine, and a thread of its own that steps it. */
typedef struct qd_model qd_model;

/* Returns when the model can answer. Progress: bytes of the checkpoint, at a module. Errors: QD_NOT_FOUND and
 * QD_INVALID_DATA with file and tensor; QD_UNSUPPORTED (architecture, a number of ranks that the model cannot be cut
 * for, no Hopper GPU, ...), naming what was found and what runs; QD_CAPACITY with the numbers; QD_CANCELLED. */
QD_API qd_result qd_model_load(const qd_model_desc* desc, const qd_progress* progress, qd_model** model,
                               qd_error* error);
/* Ends what runs, in the middle of a step where it must, and waits for the model's thread. Null is fine. */
QD_API void qd_model_free(qd_model* model);

/* {"folder", "config": {...}, "numerics", "round", "kernels", "device", "threads", "tp", "vocab_size", "max_positions",
 *  "cache_positions", "stop_ids": [...], "has_tokenizer", "memory": {...}, "notes": [...]}. */
QD_API qd_result qd_model_describe(const qd_model* model, qd_string* json, qd_error* error);
/* Sums since the load and the state after the last step: {"steps", "prefill_tokens", "decode_tokens",
 * "prefix_hits_tokens", "running", "waiting", "free_pages", "prefill_seconds", "decode_seconds", ...}. */
QD_API qd_result qd_model_metrics(const qd_model* model, qd_string* json, qd_error* error);
/* The model's tokenizer as a handle of its own, to be freed. QD_NOT_FOUND: the folder has none. */
QD_API qd_result qd_model_tokenizer(const qd_model* model, qd_tokenizer** tokenizer, qd_error* error);

typedef struct qd_request_desc {
  size_t struct_size;
  const int32_t* prompt; /* [num_prompt] token ids; or, where null: */
  int64_t num_prompt;
  const char* text; /* encoded with add_special 1, parse_special 1 */
  size_t text_size;
  int64_t max_tokens; /* of the answer; 0: the prompt alone is run; -1: what model and cache leave, at most 512 */
  float temperature;  /* 0: greedy. The filters below apply in this order (docs/numerics.md) */
  float repetition_penalty;
  int32_t top_k; /* 0: off */
  float top_p;   /* 1: off */
  float min_p;   /* 0: off */
  int32_t ignore_stop_ids;
  uint64_t seed;           /* an answer depends on prompt, sampling values and seed alone, not on the batch */
  const int32_t* stop_ids; /* beside those of the model (describe: "stop_ids") */
  size_t num_stop_ids;
  const char* const* stop; /* strings: the text ends before the first of them to be complete */
  size_t num_stop;
  int32_t logprobs;        /* -1: none; n >= 0: of each token of the answer, and the n best ids in its place */
  int32_t prompt_logprobs; /* the same for the prompt's tokens, from the second on */
} qd_request_desc;
static inline void qd_request_desc_init(qd_request_desc* desc) {
  memset(desc, 0, sizeof *desc);
  desc->struct_size = sizeof *desc;
  desc->max_tokens = -1;
  desc->repetition_penalty = 1.0f;
  desc->top_p = 1.0f;
  desc->logprobs = -1;
  desc->prompt_logprobs = -1;
}

/* Queues a request; `id` names it in this model. Errors, before anything is queued: QD_INVALID_ARGUMENT (an empty
 * prompt, an id outside of the vocabulary, sampling values out of range), QD_UNSUPPORTED (text or stop strings without
 * a tokenizer), QD_CAPACITY (longer than the model or the cache, with the numbers; 4,096 wait already). */
QD_API qd_result qd_model_submit(qd_model* model, const qd_request_desc* desc, uint64_t* id, qd_error* error);

typedef struct qd_logprob {
  int32_t id;
  float logprob; /* natural logarithm, of the model's own distribution, before penalty, temperature and filters */
} qd_logprob;

typedef struct qd_token {
  int32_t id;
  float logprob;         /* 0 where not asked for */
  const qd_logprob* top; /* [num_top] best first, ties to the lower id */
  int64_t num_top;
} qd_token;

enum { QD_FINISH_NONE = 0, QD_FINISH_STOP = 1, QD_FINISH_LENGTH = 2, QD_FINISH_CANCELLED = 3, QD_FINISH_ERROR = 4 };

/* What is new of a request since it was polled last. */
typedef struct qd_update {
  uint64_t id;
  int32_t finish;         /* QD_FINISH_...; NONE: it goes on */
  const char* text;       /* new text that is certain: whole characters, no part of a stop string */
  size_t text_size;       /* a zero stands behind it */
  const qd_token* tokens; /* [num_tokens] of the answer, without a stop id */
  int64_t num_tokens;
  const qd_token* prompt_tokens; /* [num_prompt_tokens] once, where asked for: of prompt tokens 1, 2, ... */
  int64_t num_prompt_tokens;
  int64_t cached_prompt_tokens; /* positions that the prefix cache had */
  qd_error error;               /* with QD_FINISH_ERROR */
} qd_update;

/* Never waits. The update may be empty. A request stays known until its finish was polled; QD_NOT_FOUND then. */
QD_API qd_result qd_model_poll(qd_model* model, uint64_t id, qd_update** update, qd_error* error);
QD_API void qd_update_free(qd_update* update);
/* Returns when polling one of these ids would say something new, or is an error, or after `seconds`. */
QD_API qd_result qd_model_wait(qd_model* model, const uint64_t* ids, size_t num_ids, double seconds, qd_error* error);
/* The request ends with QD_FINISH_CANCELLED at the next step; its text so far is still to be polled. Unknown ids are
 * ignored. */
QD_API qd_result qd_model_cancel(qd_model* model, uint64_t id, qd_error* error);

/* The logits after every token of `ids`: logits [num_ids, vocab_size] fp32 on the host, row-major, the same bits as
 * `quadrille logits` writes. Runs in the engine beside the requests, and returns when all are there. `capacity`: floats
 * that `logits` has room for, at least num_ids * vocab_size. Progress: tokens. Errors: as qd_model_submit(); those of
 * the model; QD_CANCELLED, with `logits` in part. */
QD_API qd_result qd_model_logits(qd_model* model, const int32_t* ids, int64_t num_ids, float* logits, size_t capacity,
                                 const qd_progress* progress, qd_error* error);

#ifdef __cplusplus
}
#endif

#endif /* QUADRILLE_C_MODEL_H */
