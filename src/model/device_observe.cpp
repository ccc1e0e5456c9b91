// SPDX-License-Identifier: Apache-2.0
// What an observer of a step on a GPU is shown: copies to the host between the layers, each of which waits for the
// stream. Called by device_decoder.cpp.
#include "model/device_decoder.h"
#include "moe/router.h"
#include "numerics/bf16.h"

namespace quadrille::model {

Result<std::vector<float>> DeviceDecoder::read_bf16(const uint16_t* rows, int64_t count) const {
  std::vector<uint16_t> codes(static_cast<size_t>(count));
  QD_TRY_STATUS(device::copy_to_host(codes.data(), rows, 2 * codes.size(), stream_));
  QD_TRY_STATUS(device::synchronize(stream_));
  std::vector<float> values;
  values.reserve(codes.size());
  for (const uint16_t code : codes) values.push_back(numerics::bf16_to_f32(code));
  return values;
}

// The sum that the next norm would form is formed here; the norm then takes none.
Status DeviceDecoder::observe_hidden(int64_t layer, const StepShape& shape, StepObserver* observer) {
  enqueue_norm(shape, nullptr, true, false, false);
  update_is_pending_ = false;
  QD_TRY(const std::vector<float> rows,
         read_bf16(memory_.at<uint16_t>(parts_.x), shape.num_tokens * config_.hidden_size));
  observer->hidden(layer, rows.data(), shape.num_tokens, config_.hidden_size);
  return {};
}

Status DeviceDecoder::enqueue_moe_observer(int64_t layer, int64_t num_tokens, StepObserver* observer) {
  const moe::RouterRule& rule = config_.router;
  const int64_t count = num_tokens * config_.hidden_size;
  QD_TRY(const std::vector<float> input, read_bf16(input_rows(), count));
  QD_TRY(const std::vector<float> output, read_bf16(output_rows(), count));
  std::vector<float> logits(static_cast<size_t>(num_tokens * rule.num_experts));
  QD_TRY_STATUS(device::copy_to_host(logits.data(), memory_.at<float>(parts_.router_logits),
                                     logits.size() * sizeof(float), stream_));
  QD_TRY_STATUS(device::synchronize(stream_));
  // The device's choice is this function's, bit for bit.
  std::vector<int32_t> ids(static_cast<size_t>(num_tokens * rule.top_k));
  std::vector<float> weights(ids.size());
  ThreadPool pool(1);
  moe::route_tokens(rule, nullptr, logits.data(), num_tokens, ids.data(), weights.data(), &pool);
  observer->router(layer, logits.data(), ids.data(), weights.data(), num_tokens, rule.num_experts, rule.top_k);
  observer->moe_block(layer, input.data(), output.data(), num_tokens, config_.hidden_size);
  return {};
}

}  // namespace quadrille::model
