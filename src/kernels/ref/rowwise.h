// SPDX-License-Identifier: Apache-2.0
// The row-wise steps, scalar, one shared function of numerics/ an element. Both reference tables use them; the bits are
// those of every other table.
#pragma once

#include "kernels/api/table.h"

namespace quadrille::kernels::ref {

void quantize_rows(const QuantizeRows& p, const KernelContext& context);
void gated_activation(const GatedActivation& p, const KernelContext& context);
void rms_norm(const RmsNorm& p, const KernelContext& context);
void rope(const Rope& p, const KernelContext& context);
void router_logits(const RouterLogits& p, const KernelContext& context);
void combine(const Combine& p, const KernelContext& context);
void add_residual(const AddResidual& p, const KernelContext& context);

}  // namespace quadrille::kernels::ref
