// SPDX-License-Identifier: Apache-2.0
// The words and the JSON of `quadrille plan`.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/plan.h"

namespace quadrille::cli {

struct PlanReport {
  const PlanShape* shape = nullptr;
  const PlanRequest* request = nullptr;
  int gpus = 1;
  std::vector<GridPlan> plans;
  std::vector<std::string> illegal;  // grids that are none, with the reason
  std::optional<size_t> best;
  std::optional<Smallest> smallest;
};

std::string plan_text(const PlanReport& report, bool with_rates);
nlohmann::json plan_json(const PlanReport& report);
// Why none of the grids fits: the closest one in numbers, and the fewest GPUs that would do.
std::string does_not_fit_text(const PlanReport& report);

std::string layer_times_text(const PlanShape& shape, const GpuRates& gpu, const std::vector<LayerTime>& times);
nlohmann::json layer_times_json(const PlanShape& shape, const GpuRates& gpu, const std::vector<LayerTime>& times);

}  // namespace quadrille::cli
