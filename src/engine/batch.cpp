// SPDX-License-Identifier: Apache-2.0
// From pieces to arrays; see batch.h.
#include "engine/batch.h"

#include <algorithm>

#include "core/check.h"

namespace quadrille::engine {

void Batch::build(const Plan& plan) {
  ids_.clear();
  positions_.clear();
  sequences_.clear();
  logit_rows_.clear();
  rows_.clear();
  taken_from_.clear();
  rules_.clear();
  host_reads_ = draws_ = false;
  stride_ = 1;
  for (const Piece& piece : plan.pieces) {
    stride_ = std::max(stride_, static_cast<int64_t>(piece.sequence->pages.size()));
  }
  page_table_.assign(plan.pieces.size() * static_cast<size_t>(stride_), -1);
  for (size_t row = 0; row < plan.pieces.size(); ++row) {
    const Piece& piece = plan.pieces[row];
    Sequence& sequence = *piece.sequence;
    QD_CHECK(pages_for(piece.begin + piece.count) <= static_cast<int64_t>(sequence.pages.size()),
             "a piece without pages");
    std::copy(sequence.pages.begin(), sequence.pages.end(),
              page_table_.begin() + static_cast<std::ptrdiff_t>(row * static_cast<size_t>(stride_)));
    for (int64_t position = piece.begin; position < piece.begin + piece.count; ++position) {
      if (sequence.wants_logits(position)) add_row(sequence, position);
      const bool is_known = position < sequence.num_known();
      ids_.push_back(is_known ? sequence.tokens()[static_cast<size_t>(position)] : 0);
      taken_from_.push_back(is_known ? -1 : sequence.awaited_row());
      positions_.push_back(static_cast<int32_t>(position));
      sequences_.push_back(static_cast<int32_t>(row));
    }
  }
}

void Batch::add_row(Sequence& sequence, int64_t position) {
  logit_rows_.push_back(static_cast<int32_t>(ids_.size()));
  rows_.push_back({&sequence, position});
  rules_.push_back(sequence.rule());
  draws_ |= rules_.back().temperature > 0;
  host_reads_ |= sequence.host_reads(position);
}

std::span<const model::SampleRule> Batch::rules() const {
  return draws_ ? std::span<const model::SampleRule>(rules_) : std::span<const model::SampleRule>();
}

model::Step Batch::step() const {
  model::Step step;
  step.ids = ids_;
  step.positions = positions_;
  step.sequences = sequences_;
  step.page_table = page_table_;
  step.page_table_stride = stride_;
  step.logit_rows = logit_rows_;
  return step;
}

}  // namespace quadrille::engine
