// SPDX-License-Identifier: Apache-2.0
// Lays the pieces of a plan out as one model::Step: ids, positions, page table, rows of logits. Called by engine.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/scheduler.h"
#include "model/async_forward.h"
#include "model/forward.h"

namespace quadrille::engine {

class Batch {
 public:
  // Where one row of logits belongs.
  struct Row {
    Sequence* sequence = nullptr;
    int64_t position = 0;  // of the token that the logits follow
  };

  // Fills the arrays from `plan`; capacity is kept from step to step.
  void build(const Plan& plan);
  // The step over these arrays: good until the next build().
  model::Step step() const;
  const std::vector<Row>& rows() const { return rows_; }

  // For a step whose tokens the device chooses (model/async_forward.h): rows of the step before that ids come from, and
  // how each row is drawn; no rules where all rows are greedy.
  std::span<const int32_t> taken_from() const { return taken_from_; }
  std::span<const model::SampleRule> rules() const;
  // Whether the host must read the logits of some row, the device having drawn what it can.
  bool host_reads(bool device_draws) const { return host_reads_ || (draws_ && !device_draws); }

 private:
  void add_row(Sequence& sequence, int64_t position);

  std::vector<int32_t> ids_, positions_, sequences_;  // [T]
  std::vector<int32_t> page_table_;                   // [pieces, stride], -1 behind the last page
  std::vector<int32_t> logit_rows_;                   // [R]
  std::vector<Row> rows_;                             // [R]
  std::vector<int32_t> taken_from_;                   // [T], -1: the host knows the id
  std::vector<model::SampleRule> rules_;              // [R]
  bool host_reads_ = false, draws_ = false;
  int64_t stride_ = 0;
};

}  // namespace quadrille::engine
