/* SPDX-License-Identifier: Apache-2.0
 * The C surface used from C. */
#include "unit/api/c_calls.h"

/* Headers of C alone, and beside each other. */
#include "quadrille/c_host.h"
#include "quadrille/c_model.h"

enum { kN = 64, kK = 256, kGroup = 128, kRows = 5 };
static uint32_t codes[kN * kK / 8];
static uint16_t scales[kN * kK / kGroup];
static const void* code_list[1] = {codes};
static const void* scale_list[1] = {scales};

void c_weights_desc(qd_weights_desc* desc) {
  int i;
  for (i = 0; i < kN * kK / 8; ++i) codes[i] = 0x99999999u; /* q = 1 */
  for (i = 0; i < kN * kK / kGroup; ++i) scales[i] = 0x3f80;
  qd_weights_desc_init(desc);
  desc->part_n = kN;
  desc->k = kK;
  desc->group_size = kGroup;
  desc->codes = code_list;
  desc->scales = scale_list;
  desc->on_host = 1;
}

qd_result c_prepare(const qd_weights_desc* desc, qd_weights** weights, qd_error* error) {
  static int stream, copies;
  return qd_weights_prepare(desc, NULL, &stream, &copies, weights, error);
}

typedef struct linear_run {
  void *stream, *copies, *x, *out, *workspace;
  qd_weights* weights;
  size_t bytes;
} linear_run;

static qd_result start(linear_run* run, qd_error* error) {
  qd_weights_desc desc;
  qd_result code;
  c_weights_desc(&desc);
  if ((code = qd_stream_create(&run->stream, error)) != QD_OK) return code;
  if ((code = qd_stream_create(&run->copies, error)) != QD_OK) return code;
  if ((code = qd_weights_prepare(&desc, NULL, run->stream, run->copies, &run->weights, error)) != QD_OK) return code;
  if ((code = qd_linear_workspace_bytes(run->weights, kRows, &run->bytes, error)) != QD_OK) return code;
  if ((code = qd_memory_allocate(run->bytes, run->stream, &run->workspace, error)) != QD_OK) return code;
  if ((code = qd_memory_allocate(2 * kRows * kK, run->stream, &run->x, error)) != QD_OK) return code;
  return qd_memory_allocate(2 * kRows * kN, run->stream, &run->out, error);
}

static qd_result compute(const linear_run* run, const uint16_t* x, uint16_t* out, qd_error* error) {
  qd_result code;
  uint32_t flags;
  if ((code = qd_copy_to_device(run->x, x, 2 * kRows * kK, run->stream, error)) != QD_OK) return code;
  if ((code = qd_linear_run(run->weights, run->x, kRows, run->out, run->workspace, run->bytes, run->stream, error)) !=
      QD_OK) {
    return code;
  }
  if ((code = qd_copy_to_host(out, run->out, 2 * kRows * kN, run->stream, error)) != QD_OK) return code;
  if ((code = qd_weights_synchronize(run->weights, run->stream, &flags, error)) != QD_OK) return code;
  return flags == 0 ? QD_OK : QD_INVALID_DATA;
}

static void finish(linear_run* run) {
  qd_memory_release(run->x, run->stream);
  qd_memory_release(run->out, run->stream);
  qd_memory_release(run->workspace, run->stream);
  qd_weights_destroy(run->weights, run->stream);
  qd_stream_destroy(run->copies);
  qd_stream_destroy(run->stream);
}

int c_linear_of_ones(qd_error* error) {
  static uint16_t x[kRows * kK], out[kRows * kN];
  linear_run run;
  int i, wrong = 0;
  memset(&run, 0, sizeof run);
  memset(out, 0xff, sizeof out);
  for (i = 0; i < kRows * kK; ++i) x[i] = 0x3f80; /* 1.0 */
  if (start(&run, error) != QD_OK || compute(&run, x, out, error) != QD_OK) {
    finish(&run);
    return -1;
  }
  for (i = 0; i < kRows * kN; ++i) wrong += out[i] != 0x4380; /* 256 */
  finish(&run);
  return wrong;
}
