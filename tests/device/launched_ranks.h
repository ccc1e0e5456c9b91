// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes: a test starts this program once a rank, with torchrun's variables, on a disabled test that
// is one rank.
#pragma once

#include <functional>
#include <string>

#include "core/result.h"
#include "parallel/communicator.h"

namespace quadrille::multi {

// Inside the disabled test: opens the communicator of the launch, runs `body` and leaves; failures are the test's.
void run_launched_rank(const std::function<Status(parallel::Communicator& host)>& body);

// Starts `num_ranks` processes on the disabled test `name` and expects each to end well within four minutes.
void expect_launched_ranks(int num_ranks, const std::string& name);

}  // namespace quadrille::multi
