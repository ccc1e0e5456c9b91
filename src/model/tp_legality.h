// SPDX-License-Identifier: Apache-2.0
// Which tensor-parallel sizes a shard plan on whole heads and whole scale groups would allow, and why not: integers
// only. Shown by inspect. The program itself runs one rank today; nothing here runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace quadrille::model {

// What the plan has to know of a row-parallel matrix (its K is split): o_proj, down_proj of each kind.
struct RowParallelMatrix {
  std::string name;        // "experts.down_proj", for the reasons
  int64_t k = 0;           // in features
  int64_t group_size = 0;  // 32, 64, 128; 0: one scale a channel or unquantised
  int64_t unit = 1;  // k must be cut at multiples of this beside the group (8 for packed words, head_dim for o_proj)
};

struct TpVerdict {
  int ranks = 1;
  bool legal = true;                 // with equal or uneven whole units, at least one a rank
  bool even = true;                  // every rank gets the same
  std::vector<std::string> reasons;  // why not legal, or what is uneven or replicated
};

// Sizes 1..max_ranks for a model of these shapes.
std::vector<TpVerdict> tp_verdicts(const ModelConfig& config, const std::vector<RowParallelMatrix>& matrices,
                                   int max_ranks = 8);

}  // namespace quadrille::model
