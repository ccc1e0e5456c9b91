// SPDX-License-Identifier: Apache-2.0
// `bench --device cuda`: loads or makes the model on a GPU, measures it and prints the table or JSON. Called by
// cmd_bench.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "cli/args.h"
#include "cli/bench_gpu.h"
#include "cli/console.h"

namespace quadrille::cli {

struct GpuBenchOptions {
  ModelOptions model;
  std::string shape;  // "": model.folder
  int64_t layers = 0;
  int64_t vocabulary = 0;
  std::string group_size = "128";
  GpuBenchPlan plan;
  bool as_json = false;
};
Status run_gpu_bench(Console& console, const GpuBenchOptions& options);

}  // namespace quadrille::cli
