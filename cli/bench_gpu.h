// SPDX-License-Identifier: Apache-2.0
// Times decode at several batch sizes and prefill of a model on a GPU, with distinct random tokens, beside the floor
// that bytes and operations set. Called by cmd_bench.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/bench_gpu_ceilings.h"
#include "core/result.h"
#include "model/device_model.h"

namespace quadrille::cli {

struct GpuBenchPlan {
  std::vector<int64_t> batches = {1, 64};
  int64_t context = 1024;  // tokens in front of the decoded ones, of each sequence
  int64_t decode_tokens = 32;
  int64_t prefill_tokens = 4096;
  int64_t rounds = 7;
  uint64_t seed = 0;
};

struct GpuBenchRow {
  std::string name;             // "decode", "prefill"
  int64_t batch = 1;            // sequences
  int64_t tokens = 1;           // of a step
  int64_t context = 0;          // positions in front of the step
  std::vector<double> seconds;  // a step, by round
  double experts_hit = 0;       // distinct experts a MoE layer, the mean over the layers
  double bytes = 0;             // that the step must read
  double operations = 0;
  double floor_seconds = 0;  // the longer of bytes and operations over their probed ceilings
  double median_seconds() const;
};

struct GpuBenchResult {
  GpuCeilings ceilings;
  std::vector<GpuBenchRow> rows;
};

// Positions of the cache and tokens of a step that the plan needs.
int64_t gpu_bench_positions(const GpuBenchPlan& plan);
int64_t gpu_bench_longest(const GpuBenchPlan& plan);

// `ordinal`: the model's GPU. Errors of the model; kCancelled.
Result<GpuBenchResult> measure_on_gpu(model::DeviceModel& model, int ordinal, const GpuBenchPlan& plan,
                                      const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace quadrille::cli
