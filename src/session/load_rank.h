// SPDX-License-Identifier: Apache-2.0
// From options to the model of one rank in memory. Called on the rank's own thread by session.cpp; the command line
// makes the same choices with the same functions.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/thread_pool.h"
#include "model/any_model.h"
#include "model/device_model.h"
#include "parallel/communicator.h"
#include "session/session.h"
#include "session/watched_work.h"

namespace quadrille::session {

// The members are destroyed from the last to the first: the model goes before the pool that it uses.
struct LoadedRank {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<model::AnyModel> model;
};

// Errors, before anything is loaded: numbers without a meaning, options that do not go together.
Status check_session_options(const SessionOptions& options);

// "cuda:N" -> N, "cpu" -> none. kInvalidArgument for anything else.
Result<std::optional<int>> gpu_of(const std::string& device);
// The table of that name ("": the best) that does this rounding. kUnsupported when it does not run here or lacks it.
Result<const kernels::KernelTable*> choose_table(const std::string& name, kernels::Rounding rounding);
// Of a model on GPU `ordinal`, with the kernels of this build. Errors: a bad limit.
Result<model::DeviceOptions> device_options(int ordinal, const std::string& gpu_memory);

// Positions for `batch` sequences of `longest` tokens, but at most about 2 GiB of cache and at least one sequence: the
// rest waits its turn.
Result<int64_t> cache_positions(const std::string& folder, int64_t batch, int64_t longest);

// `ranks`: null for one rank. Rank 0 tells `loading` how far it is.
Result<LoadedRank> load_rank(const SessionOptions& options, parallel::Communicator* ranks, WatchedWork& loading);

}  // namespace quadrille::session
