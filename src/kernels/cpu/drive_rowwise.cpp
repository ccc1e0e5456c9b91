// SPDX-License-Identifier: Apache-2.0
// Row-wise steps and attention: ranges of rows, elements or (token, KV head) pairs over the pool.
#include "kernels/cpu/drive.h"
#include "kernels/cpu/split.h"

namespace quadrille::kernels::cpu {
namespace {

// Costs per element in sixteenths of a vector operation, from the instruction counts of the bodies.
constexpr int64_t kQuantizeCost = 20;
constexpr int64_t kSiluCost = 40;
constexpr int64_t kScalarActivationCost = 16 * kSiluCost;
constexpr int64_t kNormCost = 8;
constexpr int64_t kRopeCost = 8;

int64_t cost(int64_t elements, int64_t sixteenths) {
  return 1 + elements * sixteenths / 16;
}

}  // namespace

void drive_quantize_rows(const IsaParts& parts, const QuantizeRows& p, const KernelContext& context) {
  run_ranges(context, p.num_rows, cost(p.k, kQuantizeCost),
             [&](int64_t begin, int64_t end) { parts.quantize_rows(p, begin, end); });
}

void drive_gated_activation(const IsaParts& parts, const GatedActivation& p, const KernelContext& context) {
  const bool scalar = p.activation.kind != Activation::kSilu;
  run_ranges(context, p.num_rows, cost(p.width, scalar ? kScalarActivationCost : kSiluCost),
             [&](int64_t begin, int64_t end) { parts.gated_activation(p, begin, end); });
}

void drive_rms_norm(const IsaParts& parts, const RmsNorm& p, const KernelContext& context) {
  run_ranges(context, p.num_rows, cost(p.width, kNormCost),
             [&](int64_t begin, int64_t end) { parts.rms_norm(p, begin, end); });
}

void drive_rope(const IsaParts& parts, const Rope& p, const KernelContext& context) {
  run_ranges(context, p.num_tokens, cost(p.num_heads * p.rotary_dim, kRopeCost),
             [&](int64_t begin, int64_t end) { parts.rope(p, begin, end); });
}

void drive_router_logits(const IsaParts& parts, const RouterLogits& p, const KernelContext& context) {
  run_ranges(context, p.num_tokens * p.num_experts, cost(p.k, 3) + 20,
             [&](int64_t begin, int64_t end) { parts.router_logits(p, begin, end); });
}

void drive_combine(const IsaParts& parts, const Combine& p, const KernelContext& context) {
  run_ranges(context, p.num_tokens, cost(p.width, 3 * (p.top_k + 2)),
             [&](int64_t begin, int64_t end) { parts.combine(p, begin, end); });
}

void drive_add_residual(const IsaParts& parts, const AddResidual& p, const KernelContext& context) {
  run_ranges(context, p.count, 1, [&](int64_t begin, int64_t end) { parts.add_residual(p, begin, end); });
}

void drive_attention(const IsaParts& parts, const Attention& p, const KernelContext& context) {
  const int64_t pairs = p.num_tokens * p.num_kv_heads;
  if (pairs == 0) return;
  const ArenaScope scope(*context.scratch);
  // Keys and values a head: one operation for 16 products, and the exponentials.
  int64_t total = 0;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const int64_t seen = p.window > 0 && p.window <= p.position[t] ? p.window : p.position[t] + 1;
    total += p.num_heads * (seen + 32) * (p.head_dim / 8 + 4);
  }
  int64_t num_parts = parts_for(context, total);
  if (num_parts > pairs) num_parts = pairs;
  const int64_t each = kAttentionHeads * p.head_dim;
  float* scratch = context.scratch->take<float>(num_parts * each);
  run_parts(context, num_parts, [&](int64_t part) {
    parts.attention(p, pairs * part / num_parts, pairs * (part + 1) / num_parts, scratch + part * each);
  });
}

}  // namespace quadrille::kernels::cpu
