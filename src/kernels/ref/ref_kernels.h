// SPDX-License-Identifier: Apache-2.0
// The wide products of `ref`: sums, scales and softmax in double, each result rounded to fp32 once.
#pragma once

#include "kernels/api/table.h"

namespace quadrille::kernels::ref {

void wide_w4a8_gemm(const W4A8Gemm& p, const KernelContext& context);
void wide_bf16_gemm(const Bf16Gemm& p, const KernelContext& context);
void wide_attention(const Attention& p, const KernelContext& context);

}  // namespace quadrille::kernels::ref
