/* SPDX-License-Identifier: Apache-2.0
 * One W4A8 linear layer in C: weights of ones from host memory, so that every output is known. */
#include <quadrille/c_api.h>
#include <stdio.h>
#include <stdlib.h>

enum { kN = 128, kK = 256, kGroup = 128, kRows = 3, kNoGpu = 77 };

static qd_error error;

static void must(qd_result code) {
  if (code == QD_OK) return;
  printf("%s: %s\n", qd_result_name(code), error.message);
  exit(1);
}

int main(void) {
  static uint32_t codes[kN * kK / 8];
  static uint16_t scales[kN * kK / kGroup], x[kRows * kK], out[kRows * kN];
  const void* code_list[1] = {codes};
  const void* scale_list[1] = {scales};
  void *stream, *copies, *x_there, *out_there, *workspace;
  qd_weights_desc desc;
  qd_weights* weights;
  size_t bytes;
  uint32_t flags;
  int i;

  if (qd_device_available(0, &error) != QD_OK) {
    printf("skipped: %s\n", error.message);
    return kNoGpu;
  }
  for (i = 0; i < kN * kK / 8; ++i) codes[i] = 0x99999999u;  /* q = 1 */
  for (i = 0; i < kN * kK / kGroup; ++i) scales[i] = 0x3f80; /* 1.0 */
  for (i = 0; i < kRows * kK; ++i) x[i] = 0x3f80;            /* 1.0 */
  must(qd_stream_create(&stream, &error));
  must(qd_stream_create(&copies, &error));
  qd_weights_desc_init(&desc);
  desc.part_n = kN;
  desc.k = kK;
  desc.group_size = kGroup;
  desc.codes = code_list;
  desc.scales = scale_list;
  desc.on_host = 1;
  must(qd_weights_prepare(&desc, NULL, stream, copies, &weights, &error));
  must(qd_memory_allocate(sizeof x, stream, &x_there, &error));
  must(qd_memory_allocate(sizeof out, stream, &out_there, &error));
  must(qd_copy_to_device(x_there, x, sizeof x, stream, &error));
  must(qd_linear_workspace_bytes(weights, kRows, &bytes, &error));
  must(qd_memory_allocate(bytes, stream, &workspace, &error));
  must(qd_linear_run(weights, x_there, kRows, out_there, workspace, bytes, stream, &error));
  must(qd_copy_to_host(out, out_there, sizeof out, stream, &error));
  must(qd_weights_synchronize(weights, stream, &flags, &error));
  printf("flags %u, out[0][0] = bf16 0x%04x (256 ones are 0x4380)\n", flags, out[0]);
  for (i = 0; i < kRows * kN; ++i) {
    if (out[i] != 0x4380) return 1;
  }
  qd_memory_release(workspace, stream);
  qd_memory_release(out_there, stream);
  qd_memory_release(x_there, stream);
  qd_weights_destroy(weights, stream);
  qd_stream_destroy(copies);
  qd_stream_destroy(stream);
  return flags == 0 ? 0 : 1;
}
