// SPDX-License-Identifier: Apache-2.0
// How many words norm_and_route finds at RouteAndPlan::arrivals. Read by the kernel, by the step's memory and by tests.
#pragma once

#include "kernels/api/device_decoder_problems.h"

namespace quadrille::kernels {

// Those of route_and_plan, then one for every logit on its way to the CTA that chooses.
inline constexpr int64_t kMostNormedExperts = 256;
inline constexpr int64_t kNormAndRouteWords = kRouteArrivals + kMostNormedTokens * kMostNormedExperts;

}  // namespace quadrille::kernels
