// SPDX-License-Identifier: Apache-2.0
// An expert that changes its rank between two steps: what Model::move_expert() is asked for.
#pragma once

#include <cstdint>

namespace quadrille::model {

struct ExpertMove {
  enum class Kind {
    kMove,       // from -> to, then no more on `from`
    kReplicate,  // from -> to, both hold it: a hot expert
    kDrop,       // no more on `from`; another rank holds it
  };
  Kind kind = Kind::kMove;
  int64_t layer = 0, expert = 0;
  int from = 0, to = 0;  // expert-parallel ranks; `to` is not read by kDrop
};

}  // namespace quadrille::model
