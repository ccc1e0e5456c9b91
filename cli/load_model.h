// SPDX-License-Identifier: Apache-2.0
// From ModelOptions to a model in memory, with a progress bar; and what a report says about it.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/args.h"
#include "cli/console.h"
#include "core/result.h"
#include "core/thread_pool.h"
#include "engine/engine.h"
#include "kernels/api/table.h"
#include "model/any_model.h"
#include "model/device_model.h"
#include "model/model.h"
#include "session/load_rank.h"

namespace quadrille::cli {

// The members are destroyed from the last to the first: the model goes before the pool that it uses.
struct LoadedModel {
  std::unique_ptr<ThreadPool> pool;
  parallel::Communicator* ranks = nullptr;  // null: one rank
  std::unique_ptr<model::AnyModel> model;
};

// The table that --kernels names, or the best one. kUnsupported when it does not run here or lacks the rounding.
Result<const kernels::KernelTable*> choose_table(const ModelOptions& options);

// The threads that --threads and --numa ask for. Before anything is loaded: memory goes where the threads are. The
// calling thread is one of them.
Result<std::unique_ptr<ThreadPool>> make_pool(Console& console, const ModelOptions& options);

// What of LoadOptions the shared options decide; on a GPU there is no table.
Result<model::LoadOptions> make_load_options(Console& console, const ModelOptions& options, ThreadPool& pool);

// Options of a model on a GPU. Errors: a bad --gpu-memory.
Result<model::DeviceOptions> make_device_options(const ModelOptions& options);

// Loads options.folder, on the CPU or on a GPU. `positions` is what the command wants the cache to hold where
// --cache-tokens is not given.
Result<LoadedModel> load_model(Console& console, const ModelOptions& options, int64_t positions);

using session::cache_positions;

// {"numerics", "round", "kernels", "threads", "seed", ...}
nlohmann::json settings_json(const LoadedModel& loaded, const ModelOptions& options);
// "exact, round bf16, avx512, 2 threads"
std::string settings_text(const LoadedModel& loaded);

// "212 tokens in 0.9 s: 236 tokens/s; prompt 85 tokens: 1,400 tokens/s"
std::string speed_text(const engine::EngineMetrics& metrics);
nlohmann::json speed_json(const engine::EngineMetrics& metrics);

}  // namespace quadrille::cli
