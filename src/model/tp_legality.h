// SPDX-License-Identifier: Apache-2.0
// Which tensor-parallel sizes a shard plan on whole heads and whole scale groups would allow, and why not: integers
// only. Shown by inspect. The program itself runs one rank today; nothing here runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace quadrille::model {

// A row-parallel matrix whose K is split: down_proj of each kind. Cuts lie on whole groups and on whole packed words.
struct RowParallelMatrix {
  std::string name;        // "experts.down_proj", for the reasons
  int64_t k = 0;           // in features
  int64_t group_size = 0;  // 32, 64, 128; 0: one scale a channel or unquantised
};

struct TpVerdict {
  int ranks = 1;
  bool legal = true;                 // with equal or uneven whole units, at least one a rank
  bool even = true;                  // every rank gets the same
  std::vector<std::string> reasons;  // why not legal, or what is uneven or replicated
};

// Sizes 1..max_ranks for a model of these shapes. `o_proj_group`: group size of the output projection of attention,
// whose K is cut where the heads are; 0 as above.
std::vector<TpVerdict> tp_verdicts(const ModelConfig& config, int64_t o_proj_group,
                                   const std::vector<RowParallelMatrix>& matrices, int max_ranks = 8);

}  // namespace quadrille::model
