// SPDX-License-Identifier: Apache-2.0
// The words of `quadrille plan`; plan/json.cpp has its JSON.
#pragma once

#include <string>
#include <vector>

#include "plan/report.h"

namespace quadrille::cli {

std::string plan_text(const plan::PlanReport& report, bool with_rates);
// Why none of the grids fits: the closest one in numbers, and the fewest GPUs that would do.
std::string does_not_fit_text(const plan::PlanReport& report);

std::string layer_times_text(const plan::PlanShape& shape, const plan::GpuRates& gpu,
                             const std::vector<plan::LayerTime>& times);

}  // namespace quadrille::cli
