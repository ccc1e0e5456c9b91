// SPDX-License-Identifier: Apache-2.0
// Options that several commands share: which model and how it computes, and how text is sampled.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "core/numa.h"
#include "engine/request.h"
#include "kernels/api/problems.h"
#include "session/names.h"

namespace quadrille::parallel {
class Communicator;
}

namespace quadrille::cli {

struct ModelOptions {
  std::string folder;
  std::string numerics = "exact";
  std::string rounding = "bf16";
  std::string kernels;       // "": the best table that runs here
  int threads = 0;           // 0: one a usable core
  std::string numa = "off";  // core/numa.h
  uint64_t seed = 0;
  std::string activations = "checkpoint";
  std::string scales = "keep";
  int64_t cache_tokens = 0;  // 0: what the command needs
  bool quiet = false;
  std::string device = "cpu";  // or "cuda", "cuda:N"
  std::string gpu_memory;      // "": all that is free (model/device_memory_plan.h)
  bool load_report = false;    // of a GPU (load_report.h)
  int tp = 1;                  // ranks (ranks.h)
  int ep = 1;
  std::string split_scales = "agreed";
  int local_rank = 0;     // of this rank on its host, set by run_on_ranks(): the GPU or NUMA node that it takes
  int rank_timeout = 60;  // seconds until all processes of a launch have come
  parallel::Communicator* ranks = nullptr;  // of this rank, set by run_on_ranks(); null: one rank
  // The rows and columns of a grid with expert ranks (rank_grid.h); null: there are none, `ranks` are tensor-parallel.
  parallel::Communicator* tensor_ranks = nullptr;
  parallel::Communicator* expert_ranks = nullptr;

  kernels::Numerics numerics_value() const;
  kernels::Rounding rounding_value() const;
  bool on_gpu() const { return device != "cpu"; }
  int gpu_ordinal() const;  // where on_gpu()
  NumaChoice numa_value() const;
};

// Adds MODEL and the options of ModelOptions. `options` must outlive the parse.
void add_model_options(CLI::App& app, ModelOptions& options);
// The options without MODEL and without what only a checkpoint has: for bench and layer.
void add_numerics_options(CLI::App& app, ModelOptions& options);

struct SamplingOptions {
  engine::SamplingParams params;
  int64_t max_tokens = 0;  // 0: the command's default
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

// --temperature, --top-k, --top-p, --min-p, --repetition-penalty, --max-tokens, --stop, --ignore-eos. The seed is that
// of ModelOptions.
void add_sampling_options(CLI::App& app, SamplingOptions& options);

using session::numerics_name;
using session::rounding_name;

}  // namespace quadrille::cli
