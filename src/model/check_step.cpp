// SPDX-License-Identifier: Apache-2.0
// Lengths first, then token by token.
#include "model/check_step.h"

#include <unordered_map>

#include "model/decoder.h"

namespace quadrille::model {
namespace {

Status check_lengths(const Step& step, size_t room, int64_t vocab_size) {
  if (step.positions.size() != step.ids.size() || step.sequences.size() != step.ids.size()) {
    return make_error(ErrorCode::kInvalidArgument, "step: {} ids, {} positions, {} sequences; expected as many of each",
                      step.ids.size(), step.positions.size(), step.sequences.size());
  }
  if (step.page_table_stride < 0 || (step.page_table_stride == 0 && !step.page_table.empty())) {
    return make_error(ErrorCode::kInvalidArgument, "step: page table of {} entries with stride {}",
                      step.page_table.size(), step.page_table_stride);
  }
  const size_t wanted = step.logit_rows.size() * static_cast<size_t>(vocab_size);
  if (room < wanted) {
    return make_error(ErrorCode::kInvalidArgument, "step: room for {} logits, {} rows of {} are wanted", room,
                      step.logit_rows.size(), vocab_size);
  }
  int64_t last = -1;
  for (const int32_t row : step.logit_rows) {
    if (row <= last || row >= static_cast<int64_t>(step.ids.size())) {
      return make_error(ErrorCode::kInvalidArgument,
                        "step: logit row {} after {}; expected ascending rows below the {} tokens", row, last,
                        step.ids.size());
    }
    last = row;
  }
  return {};
}

// Pages of the positions [0, position] of a sequence, from entry `first` on.
Status check_pages(const Step& step, int64_t sequence, int64_t first, int64_t position, int64_t num_pages) {
  const int64_t last = position / kPagePositions;
  if (last >= step.page_table_stride) {
    return make_error(ErrorCode::kInvalidArgument, "step: sequence {}: position {} needs {} pages; the table has {}",
                      sequence, position, last + 1, step.page_table_stride);
  }
  for (int64_t i = first; i <= last; ++i) {
    const int32_t page = step.page_table[sequence * step.page_table_stride + i];
    if (page < 0 || page >= num_pages) {
      return make_error(ErrorCode::kInvalidArgument,
                        "step: sequence {}: page {} for positions from {}; legal are 0 to {}", sequence, page,
                        i * kPagePositions, num_pages - 1);
    }
  }
  return {};
}

}  // namespace

Status check_step(const Step& step, size_t room, const StepLimits& limits) {
  QD_TRY_STATUS(check_lengths(step, room, limits.vocab_size));
  const int64_t stride = step.page_table_stride;
  const int64_t num_sequences = stride == 0 ? 0 : static_cast<int64_t>(step.page_table.size()) / stride;
  std::unordered_map<int32_t, int32_t> last_position;
  for (size_t t = 0; t < step.ids.size(); ++t) {
    const int32_t id = step.ids[t], position = step.positions[t], sequence = step.sequences[t];
    if (id < 0 || id >= limits.vocab_size) {
      return make_error(ErrorCode::kInvalidArgument, "step: token {}: id {}; legal are 0 to {}", t, id,
                        limits.vocab_size - 1);
    }
    if (position < 0 || position >= limits.max_positions) {
      return make_error(ErrorCode::kInvalidArgument, "step: token {}: position {}; legal are 0 to {}", t, position,
                        limits.max_positions - 1);
    }
    if (sequence < 0 || sequence >= num_sequences) {
      return make_error(ErrorCode::kInvalidArgument, "step: token {}: sequence {}; the page table has {}", t, sequence,
                        num_sequences);
    }
    const auto [place, is_first] = last_position.try_emplace(sequence, position);
    if (!is_first && position <= place->second) {
      return make_error(ErrorCode::kInvalidArgument, "step: token {}: position {} of sequence {} behind position {}", t,
                        position, sequence, place->second);
    }
    const int64_t first_page = is_first ? 0 : place->second / kPagePositions;
    place->second = position;
    QD_TRY_STATUS(check_pages(step, sequence, first_page, position, limits.num_pages));
  }
  return {};
}

Status Decoder::check_step(const Step& step, std::span<float> logits, int64_t max_positions) const {
  return model::check_step(step, logits.size(), {config_.vocab_size, max_positions, cache_.num_pages()});
}

}  // namespace quadrille::model
