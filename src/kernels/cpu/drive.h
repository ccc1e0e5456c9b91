// SPDX-License-Identifier: Apache-2.0
// The driver: splits a problem over the pool, takes scratch, and calls the parts of one unit. Compiled for the
// baseline. No result depends on a split: every output element is computed by one chain, in one place.
#pragma once

#include "kernels/api/table.h"
#include "kernels/cpu/isa_parts.h"

namespace quadrille::kernels::cpu {

void drive_w4a8_gemm(const IsaParts& parts, const W4A8Gemm& gemm, const KernelContext& context);
void drive_bf16_gemm(const IsaParts& parts, const Bf16Gemm& gemm, const KernelContext& context);
void drive_quantize_rows(const IsaParts& parts, const QuantizeRows& p, const KernelContext& context);
void drive_gated_activation(const IsaParts& parts, const GatedActivation& p, const KernelContext& context);
void drive_rms_norm(const IsaParts& parts, const RmsNorm& p, const KernelContext& context);
void drive_rope(const IsaParts& parts, const Rope& p, const KernelContext& context);
void drive_attention(const IsaParts& parts, const Attention& p, const KernelContext& context);
void drive_router_logits(const IsaParts& parts, const RouterLogits& p, const KernelContext& context);
void drive_combine(const IsaParts& parts, const Combine& p, const KernelContext& context);
void drive_add_residual(const IsaParts& parts, const AddResidual& p, const KernelContext& context);

}  // namespace quadrille::kernels::cpu
