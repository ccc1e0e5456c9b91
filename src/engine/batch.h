// SPDX-License-Identifier: Apache-2.0
// Lays the pieces of a plan out as one model::Step: ids, positions, page table, rows of logits. Called by engine.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/scheduler.h"
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

 private:
  std::vector<int32_t> ids_, positions_, sequences_;  // [T]
  std::vector<int32_t> page_table_;                   // [pieces, stride], -1 behind the last page
  std::vector<int32_t> logit_rows_;                   // [R]
  std::vector<Row> rows_;                             // [R]
  int64_t stride_ = 0;
};

}  // namespace quadrille::engine
