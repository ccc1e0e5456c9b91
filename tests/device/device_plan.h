// SPDX-License-Identifier: Apache-2.0
// Routes sorted on the device into a tile list, for tests that call single kernels of the table.
#pragma once

#include <vector>

#include "device/device_memory.h"
#include "kernels/api/device_table.h"
#include "moe/device_layer.h"

namespace quadrille::testing {

struct DevicePlan {
  int64_t num_rows = 0;
  int32_t* offsets = nullptr;        // [experts + 1]
  int32_t* route_of_slot = nullptr;  // [rows]
  int32_t* slot_of_route = nullptr;  // [rows]
  kernels::TileList list;
};

// ids [tokens, top_k]. The arrays live in `memory`.
inline DevicePlan make_device_plan(const kernels::DeviceTable& table, const std::vector<int32_t>& ids, int64_t top_k,
                                   int64_t experts, int64_t tile_tokens, Memory* memory, device::Stream stream) {
  DevicePlan plan;
  plan.num_rows = static_cast<int64_t>(ids.size());
  kernels::PlanRoutes routes;
  routes.num_tokens = plan.num_rows / top_k;
  routes.top_k = top_k;
  routes.num_experts = experts;
  routes.tile_tokens = tile_tokens;
  routes.ids = memory->copy_of(ids, stream);
  routes.offsets = plan.offsets = memory->take<int32_t>(experts + 1, 4, stream);
  routes.route_of_slot = plan.route_of_slot = memory->take<int32_t>(plan.num_rows, 4, stream);
  routes.slot_of_route = plan.slot_of_route = memory->take<int32_t>(plan.num_rows, 4, stream);
  routes.max_tiles = kernels::max_route_tiles(plan.num_rows, experts, tile_tokens);
  routes.tiles = memory->take<kernels::TokenTile>(routes.max_tiles, 16, stream);
  routes.num_tiles = memory->take<int32_t>(1, 4, stream);
  routes.scratch = memory->take<int32_t>(kernels::plan_scratch_ints(plan.num_rows, experts), 4, stream);
  routes.status = memory->take<uint32_t>(1, 4, stream, 0);
  table.plan_routes(routes, stream);
  plan.list.tiles = routes.tiles;
  plan.list.num_tiles = routes.num_tiles;
  plan.list.max_tiles = routes.max_tiles;
  return plan;
}

// e4m3 rows as the quantising kernels write them.
struct DeviceRows {
  int64_t pitch = 0;
  uint8_t* act = nullptr;
  float* scale = nullptr;
};
inline DeviceRows take_rows(int64_t rows, int64_t k, Memory* memory, device::Stream stream) {
  DeviceRows out;
  out.pitch = (k + 127) / 128 * 128;
  out.act = memory->take<uint8_t>(rows * out.pitch, 16, stream);
  out.scale = memory->take<float>(rows, 4, stream);
  return out;
}

// The product of `rows` with the matrices of `linear`, everything but output and configuration set.
inline kernels::DeviceW4A8Gemm gemm_over(const moe::DeviceLinear& linear, const DevicePlan& plan,
                                         const DeviceRows& rows) {
  kernels::DeviceW4A8Gemm gemm;
  gemm.numerics = linear.numerics;
  gemm.n = linear.n;
  gemm.k = linear.k;
  gemm.group_size = linear.group_size;
  gemm.num_experts = linear.num_experts;
  gemm.list = plan.list;
  gemm.weights = linear.weights;
  gemm.expert_stride = linear.expert_stride;
  gemm.channel_scale = linear.channel_scale;
  gemm.bias = linear.bias;
  gemm.act = rows.act;
  gemm.act_rows = plan.num_rows;
  gemm.act_pitch = rows.pitch;
  gemm.act_scale = rows.scale;
  return gemm;
}

}  // namespace quadrille::testing
