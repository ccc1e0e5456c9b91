// SPDX-License-Identifier: Apache-2.0
// The grid of a command's ranks: --tp M tensor-parallel ranks, which are neighbours, times --ep N expert-parallel ones:
// rank = ep * M + tp. Called by ranks.cpp.
#pragma once

#include <functional>

#include "cli/args.h"
#include "core/result.h"
#include "parallel/communicator.h"
#include "parallel/launch.h"

namespace quadrille::cli {

inline constexpr int kMaxExpertRanks = 64;

// Adds --ep, for commands that ranks with different tokens can run.
void add_grid_options(CLI::App& app, ModelOptions& options);

// How many ranks the options ask for.
int num_ranks(const ModelOptions& options);

// Options whose grid has as many ranks as the launch has processes: --tp left out is what --ep leaves. kInvalidArgument
// when it does not come out.
Result<ModelOptions> fit_launch(const ModelOptions& options, const parallel::Launch& launch);

// Runs `body` with `options` whose `ranks` is `all`, and where there are expert ranks with the communicators of this
// rank's row and column, which end with the call. A collective.
Status run_in_grid(parallel::Communicator& all, const ModelOptions& options,
                   const std::function<Status(const ModelOptions&)>& body);

}  // namespace quadrille::cli
