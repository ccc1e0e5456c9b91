// SPDX-License-Identifier: Apache-2.0
// The products of `hopper`: W4A8 by the tensor-core model, dense and attention in fp32 in the order of
// docs/numerics.md. Each has a body that is compiled twice, for plain x86-64 and for AVX2 with FMA: same operations,
// same bits, only the speed differs.
#pragma once

#include "core/hostdev.h"
#include "kernels/api/table.h"

#define QD_ALWAYS_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define QD_TARGET_FMA __attribute__((target("avx2,fma")))
#else
#define QD_TARGET_FMA
#endif

namespace quadrille::kernels::ref {

// Whether the second compilation of a body runs here.
inline bool has_fma() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#else
  return false;
#endif
}

void hopper_w4a8_gemm(const W4A8Gemm& p, const KernelContext& context);
void hopper_bf16_gemm(const Bf16Gemm& p, const KernelContext& context);
void hopper_attention(const Attention& p, const KernelContext& context);

}  // namespace quadrille::kernels::ref
