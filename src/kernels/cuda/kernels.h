// SPDX-License-Identifier: Apache-2.0
// What each folder of the CUDA backend offers to the table (table.cpp). Contracts: kernels/api/device_problems.h.
#pragma once

#include <span>

#include "device/handles.h"
#include "kernels/api/device_problems.h"

namespace quadrille::kernels::cuda {

// prepare/
void prepare_w4(const DevicePrepareW4& p, device::Stream stream);
// moe/
void plan_routes(const PlanRoutes& p, device::Stream stream);
void plan_masked(const PlanMasked& p, device::Stream stream);
void router_logits(const DeviceRouterLogits& p, device::Stream stream);
void route_tokens(const DeviceRouteTokens& p, device::Stream stream);
void route_and_plan(const RouteAndPlan& p, device::Stream stream);
void combine(const DeviceCombine& p, device::Stream stream);
void combine_partial(const DeviceCombinePartial& p, device::Stream stream);
// rowwise/
void quantize_tokens(const QuantizeTokens& p, device::Stream stream);
void quantize_listed(const QuantizeListed& p, device::Stream stream);
void row_absmax(const RowAbsmax& p, device::Stream stream);
void round_to_bf16(const RoundToBf16& p, device::Stream stream);
// ranks/
void reduce_ranks(const ReduceRanks& p, device::Stream stream);
// w4a8_gemm/
void w4a8_gemm(const DeviceW4A8Gemm& p, device::Stream stream);
std::span<const GemmConfig> w4a8_configs();
int32_t choose_w4a8(int64_t n, int64_t k, int64_t num_experts, int64_t num_rows, Numerics numerics, int64_t group_size);

}  // namespace quadrille::kernels::cuda
