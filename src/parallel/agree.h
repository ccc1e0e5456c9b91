// SPDX-License-Identifier: Apache-2.0
// Setting up together: an error of one rank is one of all, so that nobody goes on into a call that would wait for it.
// Called where device communicators begin.
#pragma once

#include "parallel/communicator.h"

namespace quadrille::parallel {

// Collective. Ok where every rank passes an Ok; the own error, "rank r: " in front; else kUnsupported naming the ranks
// at which `what` failed.
Status agree(Communicator& host, const Status& own, const char* what);

}  // namespace quadrille::parallel
