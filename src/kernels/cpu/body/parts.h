// SPDX-License-Identifier: Apache-2.0
// The parts of a unit: each body once, wrapped in the unit's own call counter, so that a test can prove which unit ran.
#pragma once

#include "kernels/cpu/body/attention.h"
#include "kernels/cpu/body/bf16_gemm.h"
#include "kernels/cpu/body/rowwise.h"
#include "kernels/cpu/body/w4a8_gemm.h"
#include "kernels/cpu/isa_parts.h"

namespace quadrille::kernels::cpu {
namespace {

uint64_t g_calls = 0;

uint64_t num_calls() {
  return __atomic_load_n(&g_calls, __ATOMIC_RELAXED);
}

// Body, counted.
template <auto Body>
struct Counted;
template <typename... Args, void (*Body)(Args...)>
struct Counted<Body> {
  static void run(Args... args) {
    __atomic_fetch_add(&g_calls, 1, __ATOMIC_RELAXED);
    Body(args...);
  }
};

template <class S>
void w4a8_gemm_share(const W4A8Gemm& gemm, const GemmShare& share) {
  if (gemm.numerics == Numerics::kVllm) return w4a8_share<S, true>(gemm, share);
  w4a8_share<S, false>(gemm, share);
}

// All but the W4A8 product.
template <class S>
constexpr IsaParts parts_without_w4a8() {
  IsaParts parts{};
  parts.num_calls = num_calls;
  parts.bf16_tile_tokens = S::kTileTokens;
  parts.pack_bf16 = Counted<pack_bf16_tile<S>>::run;
  parts.bf16_gemm = Counted<bf16_share<S>>::run;
  parts.quantize_rows = Counted<quantize_rows_share<S>>::run;
  parts.gated_activation = Counted<gated_activation_share<S>>::run;
  parts.rms_norm = Counted<rms_norm_share<S>>::run;
  parts.rope = Counted<rope_share<S>>::run;
  parts.combine = Counted<combine_share<S>>::run;
  parts.add_residual = Counted<add_residual_share<S>>::run;
  parts.router_logits = Counted<router_logits_share<S>>::run;
  parts.attention = Counted<attention_share<S>>::run;
  return parts;
}

template <class S>
constexpr IsaParts parts_of(const DigitParts* digits = nullptr, const DigitParts* digits_vnni = nullptr) {
  IsaParts parts = parts_without_w4a8<S>();
  parts.w4a8_tile_tokens = S::kTileTokens;
  parts.packed_w4a8_floats = packed_w4a8_floats<S>;
  parts.pack_w4a8 = Counted<pack_w4a8_tile<S>>::run;
  parts.w4a8_gemm = Counted<w4a8_gemm_share<S>>::run;
  parts.digits = digits;
  parts.digits_vnni = digits_vnni;
  return parts;
}

}  // namespace
}  // namespace quadrille::kernels::cpu
