// SPDX-License-Identifier: Apache-2.0
// A plan from what a caller asks: which model, which GPUs, which work; and its JSON. Called by the command `plan` and
// by the C functions.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "model/tp_legality.h"
#include "plan/plan.h"

namespace quadrille::plan {

struct PlanQuestion {
  std::string model;         // folder with a config.json, or one of named_shapes()
  std::string gpu = "h100";  // of gpu_rates()
  int gpus = 0;              // 0: tp * ep, or 1
  int tp = 0, ep = 0;        // 0: every one
  int gpus_per_host = 8;
  int64_t decode_tokens = 256, context = 4096, prefill_tokens = 4096;
  std::optional<int64_t> group_size;  // instead of what the folder, or the default, says
  double gpu_memory_gib = 0;          // that a rank may use; 0: the GPU's less what it keeps
  AttentionOver attention = AttentionOver::kDivided;
};

struct PlanReport {
  PlanShape shape;
  PlanRequest request;
  int gpus = 1;
  std::vector<GridPlan> plans;
  std::vector<std::string> illegal;  // grids that are none, with the reason
  std::optional<size_t> best;
  std::optional<Smallest> smallest;
};

// The folder's config.json, or the shape of that name. Errors: kNotFound names the shapes; those of make_plan_shape().
Result<PlanShape> open_shape(const std::string& model, std::optional<int64_t> group_size = {});
// The grids that were asked for: both sizes, or one and the number of GPUs, or all of that number.
Result<std::vector<PlanGrid>> wanted_grids(const PlanQuestion& question);
// Errors: kInvalidArgument for numbers without a meaning; kUnsupported where no grid is legal, with the reasons.
Result<PlanReport> make_report(const PlanQuestion& question);
// Tensor-parallel sizes 1..max_ranks, from config.json alone.
Result<std::vector<model::TpVerdict>> legal_tp(const std::string& model, int max_ranks);

nlohmann::json plan_json(const PlanReport& report);
nlohmann::json layer_times_json(const PlanShape& shape, const GpuRates& gpu, const std::vector<LayerTime>& times);

}  // namespace quadrille::plan
