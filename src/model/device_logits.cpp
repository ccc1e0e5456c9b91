// SPDX-License-Identifier: Apache-2.0
// What follows the layers of a step on a GPU: last norm, logits, choice.
#include "kernels/api/device_decoder_problems.h"
#include "model/device_columns.h"
#include "model/device_decoder.h"
#include "moe/device_steps.h"

namespace quadrille::model {
namespace {

// The same rows for the tokens from `first` on.
kernels::DeviceCombine from_token(kernels::DeviceCombine combine, int64_t first) {
  if (combine.rows == nullptr) return combine;
  combine.num_tokens -= first;
  combine.slot += first * combine.top_k;
  if (combine.weight != nullptr) combine.weight += first * combine.top_k;
  if (combine.shared != nullptr) combine.shared += first * combine.width;
  if (combine.shared_gate != nullptr) combine.shared_gate += first;
  return combine;
}

}  // namespace

// Rows of logits(), whole on every rank.
Status DeviceDecoder::enqueue_head(const Input& input) {
  const DeviceMatrix& head = weights_.lm_head;
  const int64_t pitch = logits_pitch();
  auto* const logits = memory_.open<float>(parts_.logits, stream_);
  if (!shard_.is_split()) return enqueue_linear(head, input, {kernels::GemmOutput::kRowsF32, logits, pitch});
  auto* const own = memory_.open<float>(parts_.own_logits, stream_);
  QD_TRY_STATUS(enqueue_linear(head, input, {kernels::GemmOutput::kRowsF32, own, head.shape.n}));
  ColumnGather columns;
  columns.num_rows = input.num_rows;
  columns.element_bytes = sizeof(float);
  columns.ranges = shard_.vocabulary(config_.vocab_size);
  columns.mine = own;
  columns.gathered = memory_.open<uint8_t>(parts_.gathered, stream_);
  columns.whole = logits;
  columns.whole_pitch = pitch;
  return gather_columns(columns, *ranks_.tensor, stream_);
}

Status DeviceDecoder::enqueue_logits(const StepShape& shape, int64_t first, int64_t count, StepObserver* observer) {
  const DeviceMatrix& head = weights_.lm_head;
  kernels::DeviceAddNorm norm;
  norm.num_rows = count;
  norm.width = config_.hidden_size;
  norm.eps = static_cast<float>(config_.rms_norm_eps);
  if (!shape.every_token_alone) norm.rows = ints(block_of(shape).logit_rows) + first;
  // Row r is token r: the rows begin at `first` in the stream itself.
  const int64_t skipped = shape.every_token_alone ? first * norm.width : 0;
  norm.x = stream_rows() + skipped;
  if (update_is_pending_) {
    norm.combine = from_token(pending_combine_, shape.every_token_alone ? first : 0);
    norm.routes_are_older = true;
    if (norm.combine.rows == nullptr) norm.update = memory_.at<uint16_t>(parts_.update) + skipped;
  }
  norm.weight = weights_.final_norm;
  const bool plain = !head.shape.is_w4 || observer != nullptr;
  if (plain) norm.normed = memory_.open<uint16_t>(parts_.final_rows, stream_);
  Input input{count, norm.normed, nullptr, nullptr};
  if (head.shape.is_w4) {
    norm.act = memory_.open<uint8_t>(parts_.final_act, stream_);
    norm.act_pitch = moe::act_pitch(norm.width);
    norm.act_scale = memory_.open<float>(parts_.final_scale, stream_);
    input.act = norm.act;
    input.act_scale = norm.act_scale;
  }
  device::before_step("final_norm", stream_);
  table_.add_norm(norm, stream_);
  QD_TRY_STATUS(show_final_norm(norm.normed, count, observer));
  QD_TRY_STATUS(enqueue_head(input));
  enqueue_choice(shape, first, count);
  return {};
}

void DeviceDecoder::enqueue_choice(const StepShape& shape, int64_t first, int64_t count) {
  if (shape.draws) {
    kernels::DeviceSample draw;
    draw.num_rows = count;
    draw.vocab_size = config_.vocab_size;
    draw.pitch = logits_pitch();
    draw.logits = logits();
    draw.rules = reinterpret_cast<const kernels::SampleRule*>(ints(block_of(shape).rules)) + first;
    draw.token = tokens() + first;
    draw.status = status();
    device::before_step("sample", stream_);
    table_.sample(draw, stream_);
    return;
  }
  kernels::DeviceGreedy greedy;
  greedy.num_rows = count;
  greedy.vocab_size = config_.vocab_size;
  greedy.pitch = logits_pitch();
  greedy.logits = logits();
  greedy.token = tokens() + first;
  greedy.status = status();
  device::before_step("greedy", stream_);
  table_.greedy(greedy, stream_);
}

}  // namespace quadrille::model
