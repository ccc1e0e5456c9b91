// SPDX-License-Identifier: Apache-2.0
// The table `hopper`.
#include "kernels/ref/counted.h"
#include "kernels/ref/hopper_kernels.h"
#include "kernels/ref/rowwise.h"
#include "kernels/ref/tables.h"

namespace quadrille::kernels::ref {
namespace {
std::atomic<uint64_t> calls{0};
}

const KernelTable kHopperTable = {
    .name = "hopper",
    .description = "what a Hopper GPU computes in W4A8 layers, to the bit; dense and attention fp32 in k order",
    .supports_round_f32 = false,
    .by_name_only = true,
    .unavailable_reason = [] { return std::string(); },
    .num_calls = [] { return calls.load(std::memory_order_relaxed); },
    .quantize_rows = counted<quantize_rows, calls, QuantizeRows>,
    .w4a8_gemm = counted<hopper_w4a8_gemm, calls, W4A8Gemm>,
    .bf16_gemm = counted<hopper_bf16_gemm, calls, Bf16Gemm>,
    .gated_activation = counted<gated_activation, calls, GatedActivation>,
    .rms_norm = counted<rms_norm, calls, RmsNorm>,
    .rope = counted<rope, calls, Rope>,
    .attention = counted<hopper_attention, calls, Attention>,
    .router_logits = counted<router_logits, calls, RouterLogits>,
    .combine = counted<combine, calls, Combine>,
    .add_residual = counted<add_residual, calls, AddResidual>,
};

}  // namespace quadrille::kernels::ref
