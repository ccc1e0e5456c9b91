// SPDX-License-Identifier: Apache-2.0
// The table of a device backend. Functions enqueue on the given stream and nowhere else, never allocate, never
// synchronise, never read back; they may be captured into a graph. A refused launch throws (a bug of ours or a broken
// device); whoever calls has checked shapes.
#pragma once

#include <span>

#include "core/result.h"
#include "device/handles.h"
#include "kernels/api/device_decoder_problems.h"
#include "kernels/api/device_probe.h"
#include "kernels/api/device_problems.h"

namespace quadrille::kernels {

struct DeviceTable {
  const char* name;  // "cuda"

  void (*prepare_w4)(const DevicePrepareW4&, device::Stream);
  void (*plan_routes)(const PlanRoutes&, device::Stream);
  void (*plan_masked)(const PlanMasked&, device::Stream);
  void (*router_logits)(const DeviceRouterLogits&, device::Stream);
  void (*route_tokens)(const DeviceRouteTokens&, device::Stream);
  void (*route_and_plan)(const RouteAndPlan&, device::Stream);
  void (*quantize_tokens)(const QuantizeTokens&, device::Stream);
  void (*quantize_listed)(const QuantizeListed&, device::Stream);
  void (*row_absmax)(const RowAbsmax&, device::Stream);
  void (*round_to_bf16)(const RoundToBf16&, device::Stream);
  void (*w4a8_gemm)(const DeviceW4A8Gemm&, device::Stream);
  void (*combine)(const DeviceCombine&, device::Stream);
  void (*combine_partial)(const DeviceCombinePartial&, device::Stream);
  void (*reduce_ranks)(const ReduceRanks&, device::Stream);

  // Around the MoE layer (device_decoder_problems.h).
  void (*embed)(const DeviceEmbed&, device::Stream);
  void (*add_norm)(const DeviceAddNorm&, device::Stream);
  void (*norm_and_route)(const DeviceNormAndRoute&, device::Stream);
  void (*split_heads)(const DeviceQkv&, device::Stream);
  void (*attention)(const DeviceAttention&, device::Stream);
  void (*bf16_gemm)(const DeviceBf16Gemm&, device::Stream);
  void (*greedy)(const DeviceGreedy&, device::Stream);
  void (*sample)(const DeviceSample&, device::Stream);
  // Ceilings (device_probe.h).
  void (*probe_read)(const DeviceProbeRead&, device::Stream);
  void (*probe_products)(const DeviceProbeProducts&, device::Stream);
  // Rows of the tiles that a plan makes for bf16 experts (PlanRoutes::tile_tokens, DeviceBf16Gemm::tile_tokens).
  int64_t (*choose_bf16_tile)(int64_t num_experts, int64_t num_rows);

  // The closed list of compiled tiles, and the choice for `num_rows` rows over `num_experts` experts.
  std::span<const GemmConfig> (*w4a8_configs)();
  int32_t (*choose_w4a8)(int64_t n, int64_t k, int64_t num_experts, int64_t num_rows, Numerics numerics,
                         int64_t group_size);
};

// The table of this build; kUnsupported with the reason in a build without CUDA. Says nothing about the machine:
// device::available() does.
Result<const DeviceTable*> device_table();

}  // namespace quadrille::kernels
