// SPDX-License-Identifier: Apache-2.0
// The projections in front of and behind the attention, and whether they make their input themselves.
#include <algorithm>

#include "model/device_decoder.h"
#include "model/device_observe.h"
#include "moe/device_steps.h"

namespace quadrille::model {
namespace {

bool any_w4(const std::vector<DeviceMatrix>& matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const DeviceMatrix& m) { return m.shape.is_w4; });
}
bool any_bf16(const std::vector<DeviceMatrix>& matrices) {
  return std::any_of(matrices.begin(), matrices.end(), [](const DeviceMatrix& m) { return !m.shape.is_w4; });
}

}  // namespace

// norm(x) -> qkv.
Status DeviceDecoder::enqueue_qkv(const DeviceLayerView& layer, const StepShape& shape) {
  enqueue_norm(open_norm(shape, layer.input_norm, update_is_pending_, any_w4(layer.qkv), any_bf16(layer.qkv)));
  const Input input = normed_input(shape.num_tokens);
  auto* qkv = memory_.open<uint16_t>(parts_.qkv, stream_);
  const int64_t width = config_.q_width() + 2 * config_.kv_width();
  for (const DeviceMatrix& matrix : layer.qkv) {
    QD_TRY_STATUS(enqueue_linear(matrix, input, {kernels::GemmOutput::kRowsBf16, qkv, width}));
    qkv += matrix.shape.n;
  }
  return {};
}

bool DeviceDecoder::makes_own_codes(const DeviceMatrix& matrix, const StepShape& shape) const {
  if (!joins_steps_ || observer_ != nullptr || shard_.is_split() || !matrix.shape.is_w4) return false;
  const int64_t tokens = shape.num_tokens;
  return kernels::fits_gemm_input(matrix.w4.numerics, matrix.w4.group_size, tokens, matrix.shape.k) &&
         moe::has_small_tile(table_, matrix.w4, tokens);
}

bool DeviceDecoder::attention_quantises(int64_t layer, const StepShape& shape) const {
  const DeviceMatrix& o = weights_.layers[static_cast<size_t>(layer)].o;
  return o.shape.is_w4 && !shard_.is_split() && shape.num_tiles == 0 && observer_ == nullptr &&
         !makes_own_codes(o, shape);
}

// `mixed` -> out, which is a sum where ranks hold the heads.
Status DeviceDecoder::enqueue_o(int64_t layer, const StepShape& shape, uint16_t* out) {
  const DeviceMatrix& o = weights_.layers[static_cast<size_t>(layer)].o;
  const int64_t num_tokens = shape.num_tokens;
  Input mixed{num_tokens, memory_.at<uint16_t>(parts_.mixed), nullptr, nullptr};
  if (const layout::ModelShard* const held = shard_.own()) {
    const int64_t offset = o.shape.is_w4 ? held->layers[static_cast<size_t>(layer)].attention.o.k_offset() : 0;
    return enqueue_row_parallel(Module::kAttention, o, {mixed.x, num_tokens, config_.q_width(), offset}, out);
  }
  if (makes_own_codes(o, shape)) return enqueue_linear(o, mixed, {kernels::GemmOutput::kRowsBf16, out, o.shape.n});
  if (attention_quantises(layer, shape)) {
    mixed.act = memory_.at<uint8_t>(parts_.mixed_act);
    mixed.act_scale = memory_.at<float>(parts_.mixed_scale);
  } else if (o.shape.is_w4) {
    auto* act = memory_.open<uint8_t>(parts_.mixed_act, stream_);
    auto* act_scale = memory_.open<float>(parts_.mixed_scale, stream_);
    QD_TRY_STATUS(enqueue_quantise(Module::kAttention, mixed.x, num_tokens, config_.q_width(), act, act_scale));
    mixed.act = act;
    mixed.act_scale = act_scale;
  } else {
    QD_TRY_STATUS(show_rows(Module::kAttention, "x", mixed.x, num_tokens, config_.q_width()));
  }
  return enqueue_linear(o, mixed, {kernels::GemmOutput::kRowsBf16, out, config_.hidden_size});
}

}  // namespace quadrille::model
