// SPDX-License-Identifier: Apache-2.0
// The life of one rank, whatever its communicator is made of: a body, then the orderly end; what goes wrong is told to
// the other ranks. Called by run_rank_threads() and by a program whose ranks are processes.
#pragma once

#include <functional>

#include "parallel/communicator.h"

namespace quadrille::parallel {

struct RankRun {
  std::function<Status(Communicator&)> body;
  // Called before the others are told that this rank fails (may be empty).
  std::function<void()> before_fail;
  // An error of the body that every rank has at the same place, so that all can leave in order (may be empty: none).
  std::function<bool(const Error&)> is_shared;
};

// Runs the body and leaves. An error or an exception of the body fails the communicator, so that the others get
// kLostRank. Errors: the body's, with "rank r in phase p: " in front (kLostRank as it is: it begins with the lost rank
// and names this one); exceptions as kCapacity (no memory) or kInvalidData; those of leave().
Status run_rank(Communicator& communicator, const RankRun& run);

}  // namespace quadrille::parallel
