// SPDX-License-Identifier: Apache-2.0
// A plan: for every grid of tp x ep ranks what the largest rank holds, what it sends in a step of decode and of
// prefill, and how long the step is predicted to take. Pure arithmetic over a shape; nothing is read, nothing runs.
// Called by cmd_plan.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "plan/memory.h"
#include "plan/rates.h"
#include "plan/shape.h"
#include "plan/time.h"
#include "plan/traffic.h"

namespace quadrille::plan {

struct PlanRequest {
  PlanLoad load;
  GpuRates gpu;
  int64_t gpu_memory = 0;  // bytes that a rank may use
};

// One step, times in us on the busiest rank.
struct StepPlan {
  int64_t tokens = 0;  // of all ranks
  double embedding = 0, attention = 0, router = 0, experts = 0, shared = 0, dense = 0, head = 0;
  double collectives_us = 0;
  double sent = 0, outside = 0;  // bytes that leave a rank; of these, its host
  std::vector<PlanCollective> collectives;
  double experts_hit = 0;  // in a layer, of those that are here
  double imbalance = 1;    // rows of routed experts on the busiest rank over the mean
  double total() const;
};

struct GridPlan {
  PlanGrid grid;
  RankMemory memory;
  bool fits = false;
  StepPlan decode, prefill;
};

// Errors: those of check_grid().
Result<GridPlan> plan_grid(const PlanShape& shape, const PlanGrid& grid, const PlanRequest& request);

// The grid that fits and decodes fastest, or nothing.
std::optional<size_t> best_grid(const std::vector<GridPlan>& plans);

// The fewest GPUs, up to layout::kMaxRanks, on which some grid fits.
struct Smallest {
  PlanGrid grid;
  RankMemory memory;
};
std::optional<Smallest> smallest_that_fits(const PlanShape& shape, const PlanRequest& request, int gpus_per_host);

// One layer's routed experts alone, from bf16 rows, ids and weights to bf16 rows: what `hopper_bench layer` measures.
struct LayerTime {
  PlanGrid grid;
  int64_t tokens = 0;  // that each ep group brings
  double experts_hit = 0;
  ExpertTime time;
  std::vector<PlanCollective> collectives;
  double collectives_us = 0;
  double total() const { return time.total() + collectives_us; }
};
// kUnsupported where the model has no MoE layer, or the grid is illegal.
Result<LayerTime> plan_layer(const PlanShape& shape, const PlanGrid& grid, const GpuRates& gpu, int64_t tokens);

}  // namespace quadrille::plan
