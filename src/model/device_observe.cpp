// SPDX-License-Identifier: Apache-2.0
// What an observer of a step on a GPU is shown, in the order of decoder.cpp: copies to the host between the steps, each
// of which waits for the stream. Fused steps that leave a shown tensor out are off while somebody looks.
#include "model/device_observe.h"

#include <cstring>
#include <string_view>

#include "model/device_decoder.h"
#include "moe/device_watch.h"
#include "moe/router.h"
#include "numerics/bf16.h"

namespace quadrille::model {

// A row-parallel layer knows no module: its input is the second product's, its partial rows are that one's rows.
void DeviceStages::stage(const moe::Stage& stage) {
  const std::string_view name = stage.name;
  moe::Stage named = stage;
  if (module_ != Module::kAttention) {
    if (name == "a") named.name = "a2";
    if (name == "a_scale") named.name = "a2_scale";
    if (name == "partial") named.name = "gemm2_out";
  } else if (name == "partial") {
    return;  // update() shows the sum
  }
  observer_->stage(layer_, module_, named);
}

// q, k, v as the projections give them.
Status DeviceDecoder::show_projections(int64_t num_tokens) {
  DeviceStages stages(observer_, layer_, Module::kAttention);
  const moe::DeviceWatch watch(stages.get(), stream_);
  const int64_t q = config_.q_width(), kv = config_.kv_width(), pitch = q + 2 * kv;
  const auto* rows = memory_.at<uint16_t>(parts_.qkv);
  QD_TRY_STATUS(watch.bf16("q", rows, num_tokens, q, pitch));
  QD_TRY_STATUS(watch.bf16("k", rows + q, num_tokens, kv, pitch));
  return watch.bf16("v", rows + q + kv, num_tokens, kv, pitch);
}

Status DeviceDecoder::show_rows(Module module, const char* name, const uint16_t* rows, int64_t num_rows,
                                int64_t width) const {
  DeviceStages stages(observer_, layer_, module);
  return moe::DeviceWatch(stages.get(), stream_).bf16(name, rows, num_rows, width, width);
}

Status DeviceDecoder::show_partial_rows(Module module, const float* rows, int64_t num_rows) const {
  DeviceStages stages(observer_, layer_, module);
  return moe::DeviceWatch(stages.get(), stream_).f32("gemm2_out", rows, num_rows, config_.hidden_size);
}

// The quantised input of a second product or of o_proj.
Status DeviceDecoder::show_quantised(Module module, const kernels::QuantizeTokens& input) const {
  DeviceStages stages(observer_, layer_, module);
  return moe::DeviceWatch(stages.get(), stream_)
      .quantised("a", "a_scale", input.act, input.act_pitch, input.act_scale, input.num_tokens, input.k);
}

// The sorted routes of bf16 experts.
Status DeviceDecoder::show_plan(const kernels::PlanRoutes& plan) const {
  DeviceStages stages(observer_, layer_, Module::kExperts);
  if (!stages) return {};
  const int64_t routes = plan.num_tokens * plan.top_k;
  QD_TRY(const auto first, moe::read_i32(plan.offsets, plan.num_experts + 1, stream_));
  QD_TRY(const auto slots, moe::read_i32(plan.slot_of_route, routes, stream_));
  QD_TRY(const auto of_slot, moe::read_i32(plan.route_of_slot, routes, stream_));
  const std::vector<int64_t> offsets(first.begin(), first.end());
  stages.stage({"expert_first_token_offset", moe::StageType::kI64, {plan.num_experts + 1}, offsets.data()});
  stages.stage({"inv_permuted_idx", moe::StageType::kI32, {plan.num_tokens, plan.top_k}, slots.data()});
  stages.stage({"permuted_idx", moe::StageType::kI32, {routes}, of_slot.data()});
  return {};
}

// Their plan, h, and rows: bf16, or of ranks partial ones in fp32.
Status DeviceDecoder::show_bf16_experts(const kernels::PlanRoutes& plan, const uint16_t* hidden,
                                        const void* rows) const {
  const int64_t routes = plan.num_tokens * plan.top_k;
  QD_TRY_STATUS(show_plan(plan));
  QD_TRY_STATUS(show_rows(Module::kExperts, "act", hidden, routes, config_.expert_width));
  if (shard_.is_split()) return show_partial_rows(Module::kExperts, static_cast<const float*>(rows), routes);
  return show_rows(Module::kExperts, "gemm2_out", static_cast<const uint16_t*>(rows), routes, config_.hidden_size);
}

// What goes into the residual stream, to be changed by the observer.
Status DeviceDecoder::show_update(Module module, uint16_t* rows, int64_t num_tokens) const {
  if (observer_ == nullptr) return {};
  const int64_t width = config_.hidden_size;
  QD_TRY(std::vector<float> values, moe::read_bf16(rows, num_tokens, width, width, stream_));
  const std::vector<float> before = values;
  observer_->update(layer_, module, values.data(), num_tokens, width);
  if (values.empty() || std::memcmp(values.data(), before.data(), values.size() * sizeof(float)) == 0) return {};
  std::vector<uint16_t> codes;
  codes.reserve(values.size());
  for (const float value : values) codes.push_back(numerics::bf16_from_f32(value));
  QD_TRY_STATUS(device::copy_to_device(rows, codes.data(), codes.size() * sizeof(uint16_t), stream_));
  return device::synchronize(stream_);
}

// The sum that the next norm would form is formed here; the norm then takes none.
Status DeviceDecoder::show_hidden(const StepShape& shape) {
  if (observer_ == nullptr) return {};
  enqueue_norm(open_norm(shape, nullptr, true, false, false));
  update_is_pending_ = false;
  const int64_t width = config_.hidden_size;
  QD_TRY(const std::vector<float> rows, moe::read_bf16(stream_rows(), shape.num_tokens, width, width, stream_));
  observer_->hidden(layer_, rows.data(), shape.num_tokens, width);
  return {};
}

// The device's choice is route_tokens() over its logits, bit for bit; the plan that is shown next holds it.
Status DeviceDecoder::show_router(int64_t num_tokens) const {
  if (observer_ == nullptr) return {};
  const moe::RouterRule& rule = config_.router;
  QD_TRY(const std::vector<float> logits,
         moe::read_f32(memory_.at<float>(parts_.router_logits), num_tokens * rule.num_experts, stream_));
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens * rule.top_k));
  std::vector<float> weights(ids.size());
  ThreadPool pool(1);
  moe::route_tokens(rule, nullptr, logits.data(), num_tokens, ids.data(), weights.data(), &pool);
  observer_->router(layer_, logits.data(), ids.data(), weights.data(), num_tokens, rule.num_experts, rule.top_k);
  return {};
}

Status DeviceDecoder::show_moe_block(int64_t num_tokens) const {
  if (observer_ == nullptr) return {};
  const int64_t width = config_.hidden_size;
  QD_TRY(const std::vector<float> input, moe::read_bf16(input_rows(), num_tokens, width, width, stream_));
  QD_TRY(const std::vector<float> output, moe::read_bf16(output_rows(), num_tokens, width, width, stream_));
  observer_->moe_block(layer_, input.data(), output.data(), num_tokens, width);
  return {};
}

Status DeviceDecoder::show_final_norm(const uint16_t* rows, int64_t num_rows, StepObserver* observer) const {
  if (observer == nullptr) return {};
  const int64_t width = config_.hidden_size;
  QD_TRY(const std::vector<float> values, moe::read_bf16(rows, num_rows, width, width, stream_));
  observer->final_norm(values.data(), num_rows, width);
  return {};
}

}  // namespace quadrille::model
