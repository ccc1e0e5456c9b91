// SPDX-License-Identifier: Apache-2.0
// One table of functions per backend: the border that everything above kernels/ calls through. Functions trust their
// problem (the layers above check shapes against can_run) and never allocate beyond the scratch arena that they are
// given.
#pragma once

#include <string>

#include "core/arena.h"
#include "core/result.h"
#include "core/thread_pool.h"
#include "kernels/api/problems.h"

namespace quadrille::kernels {

// What a call may use: the pool it splits its work over, and scratch that the caller resets between steps.
struct KernelContext {
  ThreadPool* pool = nullptr;
  Arena* scratch = nullptr;
};

struct KernelTable {
  const char* name;         // "avx512", "avx2", "generic", "vdpbf16", "ref", "hopper"
  const char* description;  // one line for people
  bool supports_round_f32;  // `hopper` computes what the GPU computes and has no round f32
  bool by_name_only;        // slow, or another order than the default tables: never picked without being named

  // Empty when this machine can run the table, else the reason ("this CPU has no AVX-512 BW").
  std::string (*unavailable_reason)();
  // How many calls this table's own compiled units have served in this process: a test proves by it which table ran.
  uint64_t (*num_calls)();

  void (*quantize_rows)(const QuantizeRows&, const KernelContext&);
  void (*w4a8_gemm)(const W4A8Gemm&, const KernelContext&);
  void (*bf16_gemm)(const Bf16Gemm&, const KernelContext&);
  void (*gated_activation)(const GatedActivation&, const KernelContext&);
  void (*rms_norm)(const RmsNorm&, const KernelContext&);
  void (*rope)(const Rope&, const KernelContext&);
  void (*attention)(const Attention&, const KernelContext&);
  void (*router_logits)(const RouterLogits&, const KernelContext&);
  void (*combine)(const Combine&, const KernelContext&);
  void (*add_residual)(const AddResidual&, const KernelContext&);
};

// Shape rules of a W4A8 product, the same for every CPU table. The error names the rule, the numbers and legal values.
Status check_w4a8_shape(int64_t n, int64_t k, int64_t group_size);

}  // namespace quadrille::kernels
