// SPDX-License-Identifier: Apache-2.0
// The host's side of a step. All of it runs on one stream, so the workspace needs no second copy; only what the host
// writes and reads has two.
#include "model/device_runner.h"

#include <algorithm>

#include "core/check.h"
#include "device/order.h"

namespace quadrille::model {

Result<std::unique_ptr<DeviceRunner>> DeviceRunner::create(DeviceDecoder* decoder, const StepSizes& sizes,
                                                           int64_t most_padded, device::Stream stream) {
  std::unique_ptr<DeviceRunner> runner(new DeviceRunner(decoder, sizes, most_padded, stream));
  StepShape largest;
  largest.num_tokens = largest.num_logit_rows = largest.num_singles = largest.num_tiles = sizes.max_tokens;
  largest.num_sequences = sizes.max_sequences;
  largest.max_context = context_bucket_of(sizes.max_positions, sizes.max_positions);
  largest.every_token_alone = false;
  largest.draws = true;
  const size_t block_bytes = sizeof(int32_t) * static_cast<size_t>(block_of(largest).total);
  const size_t token_bytes = sizeof(int32_t) * static_cast<size_t>(sizes.max_tokens + 1);
  for (Slot& slot : runner->slots_) {
    QD_TRY(slot.block, device::PinnedBuffer::allocate(block_bytes));
    QD_TRY(slot.tokens, device::PinnedBuffer::allocate(token_bytes));
    QD_TRY(slot.block_is_read, device::OwnedEvent::create());
    QD_TRY(slot.tokens_are_there, device::OwnedEvent::create());
  }
  QD_TRY_STATUS(device::fill(decoder->status(), 0, sizeof(uint32_t), stream));
  QD_TRY_STATUS(decoder->clear_counters(stream));
  return runner;
}

PlannedPiece DeviceRunner::plan(const Step& step, const StepPiece& piece, bool pads) const {
  return plan_piece(step, piece, decoder_.tile_tokens(), pads ? most_padded_ : 0, sizes_.max_positions);
}

bool DeviceRunner::runs_as_graph(const PlannedPiece& planned) const {
  const StepShape& shape = planned.shape;
  return shape.every_token_alone && shape.num_tokens <= most_padded_ && bucket_of(shape.num_tokens) == shape.num_tokens;
}

// Through the slot's page-locked memory in one copy; the slot may be filled again when its event has passed.
Status DeviceRunner::send_block(const Step& step, const PlannedPiece& planned, Slot* slot) {
  if (slot->block_is_sent) QD_TRY_STATUS(device::synchronize(slot->block_is_read->get()));
  slot->block_is_sent = false;
  const auto count = static_cast<size_t>(block_of(planned.shape).total);
  auto* const ints = static_cast<int32_t*>(slot->block.get());
  QD_CHECK(count * sizeof(int32_t) <= slot->block.size_bytes(), "the largest block was planned");
  pack_step(step, planned, {ints, count});
  device::before_step("step.block", stream_);
  QD_TRY_STATUS(device::copy_to_device(decoder_.block(), ints, count * sizeof(int32_t), stream_));
  QD_TRY_STATUS(device::record(slot->block_is_read->get(), stream_));
  slot->block_is_sent = true;
  ++sent_;
  return {};
}

// A graph for the shape: the first time the step is enqueued call by call, which also loads what the kernels need, and
// then captured for the next one.
Status DeviceRunner::enqueue_padded(const PlannedPiece& planned) {
  const StepShape& shape = planned.shape;
  const auto known = std::find_if(graphs_.begin(), graphs_.end(),
                                  [&](const CapturedStep& captured) { return captured.shape == shape; });
  if (known != graphs_.end()) return known->graph.launch(stream_);
  const auto enqueue_all = [&]() -> Status {
    QD_TRY_STATUS(decoder_.enqueue_layers(shape));
    return decoder_.enqueue_logits(shape, 0, shape.num_logit_rows);
  };
  QD_TRY_STATUS(enqueue_all());
  QD_TRY(device::Graph graph, device::Graph::capture(stream_, enqueue_all));
  graphs_.push_back({shape, std::move(graph)});
  return {};
}

Status DeviceRunner::run(const Step& step, int64_t vocab_size, std::span<float> logits, StepObserver* observer) {
  QD_CHECK(enqueued_ == collected_, "run() is not for the time between enqueue() and collect()");
  for (const StepPiece& piece : cut_step(step, sizes_.max_tokens, sizes_.max_sequences)) {
    QD_TRY_STATUS(run_piece(step, piece, vocab_size, logits.data() + piece.row_begin * vocab_size, observer));
  }
  return device::synchronize(stream_);
}

Status DeviceRunner::run_piece(const Step& step, const StepPiece& piece, int64_t vocab_size, float* logits,
                               StepObserver* observer) {
  const PlannedPiece planned = plan(step, piece, observer == nullptr);
  QD_TRY_STATUS(send_block(step, planned, &slots_[sent_ % AsyncForward::kInFlight]));
  const int64_t rows = piece.row_end - piece.row_begin;
  if (observer == nullptr && runs_as_graph(planned)) {
    QD_TRY_STATUS(enqueue_padded(planned));
    return copy_logits(rows, vocab_size, logits);
  }
  QD_TRY_STATUS(decoder_.enqueue_layers(planned.shape, observer));
  for (int64_t first = 0; first < rows; first += sizes_.max_logit_rows) {
    const int64_t count = std::min(sizes_.max_logit_rows, rows - first);
    QD_TRY_STATUS(decoder_.enqueue_logits(planned.shape, first, count, observer));
    QD_TRY_STATUS(copy_logits(count, vocab_size, logits + first * vocab_size));
  }
  return {};
}

Status DeviceRunner::copy_logits(int64_t num_rows, int64_t vocab_size, float* logits) const {
  const int64_t pitch = decoder_.logits_pitch();
  if (pitch == vocab_size) {
    const auto bytes = sizeof(float) * static_cast<size_t>(num_rows * vocab_size);
    return device::copy_to_host(logits, decoder_.logits(), bytes, stream_);
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    QD_TRY_STATUS(device::copy_to_host(logits + r * vocab_size, decoder_.logits() + r * pitch,
                                       sizeof(float) * static_cast<size_t>(vocab_size), stream_));
  }
  return {};
}

// The ids that the step before chose go to their tokens on the device, a run of neighbours at a time.
Status DeviceRunner::take_tokens(std::span<const int32_t> taken_from) {
  for (size_t t = 0; t < taken_from.size();) {
    if (taken_from[t] < 0) {
      ++t;
      continue;
    }
    size_t end = t + 1;
    while (end < taken_from.size() && taken_from[end] == taken_from[end - 1] + 1) ++end;
    // Ids are the block's first array.
    QD_TRY_STATUS(device::copy_on_device(decoder_.block() + t, decoder_.tokens() + taken_from[t],
                                         sizeof(int32_t) * (end - t), stream_));
    t = end;
  }
  return {};
}

Status DeviceRunner::check_async(const Step& step, std::span<const int32_t> taken_from, size_t num_rules) const {
  const size_t rows = step.logit_rows.size();
  if (cut_step(step, sizes_.max_tokens, sizes_.max_sequences).size() != 1) {
    return make_error(ErrorCode::kInvalidArgument,
                      "a step of {} tokens; one that is enqueued has 1 to {} tokens of at most {} sequences",
                      step.ids.size(), sizes_.max_tokens, sizes_.max_sequences);
  }
  if (enqueued_ - collected_ >= AsyncForward::kInFlight) {
    return make_error(ErrorCode::kInvalidArgument, "{} steps are in flight already: collect one first",
                      AsyncForward::kInFlight);
  }
  if (num_rules != 0 && num_rules != rows) {
    return make_error(ErrorCode::kInvalidArgument, "{} rules for {} logit rows", num_rules, rows);
  }
  if (!taken_from.empty() && taken_from.size() != step.ids.size()) {
    return make_error(ErrorCode::kInvalidArgument, "{} sources of ids for {} tokens", taken_from.size(),
                      step.ids.size());
  }
  for (const int32_t row : taken_from) {
    if (row < last_rows_) continue;
    return make_error(ErrorCode::kInvalidArgument, "an id from row {}; the step before has {}", row, last_rows_);
  }
  return {};
}

Status DeviceRunner::enqueue(const Step& step, std::span<const int32_t> taken_from,
                             std::span<const kernels::SampleRule> rules) {
  QD_TRY_STATUS(check_async(step, taken_from, rules.size()));
  const auto rows = static_cast<int64_t>(step.logit_rows.size());
  Slot& slot = slots_[enqueued_ % AsyncForward::kInFlight];
  PlannedPiece planned = plan(step, {0, static_cast<int64_t>(step.ids.size()), 0, rows}, true);
  planned.rules = rules;
  planned.shape.draws = !rules.empty();
  QD_TRY_STATUS(send_block(step, planned, &slot));
  QD_TRY_STATUS(take_tokens(taken_from));
  if (runs_as_graph(planned)) {
    QD_TRY_STATUS(enqueue_padded(planned));
  } else {
    QD_TRY_STATUS(decoder_.enqueue_layers(planned.shape));
    for (int64_t first = 0; first < rows; first += sizes_.max_logit_rows) {
      QD_TRY_STATUS(decoder_.enqueue_logits(planned.shape, first, std::min(sizes_.max_logit_rows, rows - first)));
    }
  }
  auto* const tokens = static_cast<int32_t*>(slot.tokens.get());
  QD_TRY_STATUS(device::copy_to_host(tokens, decoder_.tokens(), sizeof(int32_t) * static_cast<size_t>(rows), stream_));
  QD_TRY_STATUS(device::record(slot.tokens_are_there->get(), stream_));
  slot.num_rows = last_rows_ = rows;
  ++enqueued_;
  return {};
}

Result<std::span<const int32_t>> DeviceRunner::collect() {
  if (enqueued_ == collected_) return make_error(ErrorCode::kInvalidArgument, "no step is in flight");
  const Slot& slot = slots_[collected_ % AsyncForward::kInFlight];
  ++collected_;  // whatever came of it
  QD_TRY_STATUS(device::synchronize(slot.tokens_are_there->get()));
  return std::span<const int32_t>(static_cast<const int32_t*>(slot.tokens.get()), static_cast<size_t>(slot.num_rows));
}

}  // namespace quadrille::model
