// SPDX-License-Identifier: Apache-2.0
// Rows that exist are gathered into slots, expert by expert; everything after the first product runs over slots.
#include "moe/masked_layer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "layout/tag.h"

namespace quadrille::moe {
namespace {

// Slots of the rows that exist.
struct MaskedPlan {
  std::vector<int64_t> offsets{0};  // [experts + 1]
  std::vector<int32_t> row;         // [slots] row of [experts * max_m]
};

Status check_masked(const GatedMlp& experts, const W4Linear* gate_up, const Execution& execution, int64_t max_m) {
  if (gate_up == nullptr || !is_w4a8(experts.down)) {
    return make_error(ErrorCode::kUnsupported, "masked layout: experts must be W4A8, found bf16 weights");
  }
  if (execution.numerics != kernels::Numerics::kExact) {
    return make_error(ErrorCode::kUnsupported,
                      "masked layout: 1 x 128 activation scales run with the numerics 'exact' only, found 'vllm'");
  }
  const int64_t most = std::numeric_limits<int32_t>::max() / std::max<int64_t>(1, gate_up->num_experts);
  if (max_m < 0 || max_m > most) {
    return make_error(ErrorCode::kInvalidArgument, "masked layout: {} experts of {} rows each; legal are 0 to {} rows",
                      gate_up->num_experts, max_m, most);
  }
  return check_mlp(experts, gate_up->num_experts);
}

Result<MaskedPlan> plan_rows(const MaskedBatch& batch, int64_t num_experts) {
  MaskedPlan plan;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int32_t count = batch.masked_m[e];
    if (count < 0 || count > batch.max_m) {
      return make_error(ErrorCode::kInvalidArgument, "masked layout: expert {}: masked_m is {}; legal are 0 to {}", e,
                        count, batch.max_m);
    }
    for (int32_t i = 0; i < count; ++i) plan.row.push_back(static_cast<int32_t>(e * batch.max_m + i));
    plan.offsets.push_back(plan.offsets.back() + count);
  }
  return plan;
}

}  // namespace

Status run_masked_experts(const GatedMlp& experts, const MaskedBatch& batch, const Execution& execution, float* out) {
  const auto* gate_up = std::get_if<W4Linear>(&experts.gate_up);
  QD_TRY_STATUS(check_masked(experts, gate_up, execution, batch.max_m));
  QD_TRY(const MaskedPlan plan, plan_rows(batch, gate_up->num_experts));
  const auto num_slots = static_cast<int64_t>(plan.row.size());
  if (num_slots == 0) return {};

  Arena* scratch = execution.kernels.scratch;
  kernels::W4A8Gemm first;
  first.n = gate_up->n;
  first.k = gate_up->k;
  first.group_size = gate_up->group_size;
  first.rows = {gate_up->num_experts, plan.offsets.data(), plan.row.data()};
  first.weights = gate_up->matrices;
  first.act = batch.act;
  first.block_scale = kernels::masked_block_scales(batch.act_scale,
                                                   layout::ceil_div(experts.hidden, kernels::kScaleBlock), batch.max_m);
  first.bias = gate_up->bias;
  first.out = scratch->take<float>(num_slots * gate_up->n);
  execution.table->w4a8_gemm(first, execution.kernels);

  float* hidden = scratch->take<float>(num_slots * experts.width);
  apply_activation(experts.activation, first.out, num_slots, experts.width, execution, hidden);
  LinearInput second(hidden, num_slots, experts.width);
  float* rows = scratch->take<float>(num_slots * experts.hidden);
  apply_linear(experts.down, &second, {gate_up->num_experts, plan.offsets.data(), nullptr},
               OutputRounding::kAsExecution, execution, rows);
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    std::memcpy(out + plan.row[static_cast<size_t>(slot)] * experts.hidden, rows + slot * experts.hidden,
                static_cast<size_t>(experts.hidden) * sizeof(float));
  }
  return {};
}

}  // namespace quadrille::moe
