// SPDX-License-Identifier: Apache-2.0
// The steps that the forms of the device layer share: choice of tiles, tile lists, and the two products of an MLP with
// the activation and the quantisation between them. Called by device_layer.cpp and device_forms.cpp.
#pragma once

#include "moe/device_workspace.h"

namespace quadrille::moe {

struct GemmConfigs {
  int32_t first = 0, second = 0;  // indices into w4a8_configs()
  int64_t first_tokens = 0, second_tokens = 0;
  bool one_list() const { return first_tokens == second_tokens; }
};

enum class ActScales { kPerToken, k1x128 };

// For about `num_rows` rows over the experts of `mlp`; `scales` of the first product. Unless both are forced, the two
// get tiles of equal tokens, so that one list serves. Errors: kInvalidArgument for a forced index outside of the list,
// kUnsupported for one that was not compiled for these scales.
Result<GemmConfigs> choose_configs(const kernels::DeviceTable& table, const DeviceMlp& mlp, int64_t num_rows,
                                   const DeviceLayerOptions& options, ActScales scales = ActScales::kPerToken);
Result<int32_t> choose_config(const kernels::DeviceTable& table, const DeviceLinear& linear, int64_t num_rows,
                              int32_t forced, ActScales scales = ActScales::kPerToken);

// Rows of one expert, as the host knows them.
kernels::TileList single_list(int64_t num_rows);

// The quantised rows that GEMM1 reads.
struct MlpInput {
  int64_t num_rows = 0;  // of act
  const uint8_t* act = nullptr;
  int64_t pitch = 0;
  const float* scale = nullptr;        // [num_rows]; null with block_scale
  const float* block_scale = nullptr;  // [experts, ceil(hidden / 128), block_max_m]
  int64_t block_max_m = 0;
};

// Enqueues GEMM1 with activation, quantisation, GEMM2. `rows` [num_rows, hidden] bf16; null: the workspace's own.
// Returns the rows.
uint16_t* enqueue_mlp(const kernels::DeviceTable& table, const DeviceMlp& mlp, const MlpInput& input,
                      const kernels::TileList (&lists)[2], const GemmConfigs& configs, const Workspace& workspace,
                      const MlpParts& parts, uint16_t* rows, device::Stream stream);

// The problem of one product but for its rows and its output.
kernels::DeviceW4A8Gemm gemm_of(const DeviceLinear& linear, const kernels::TileList& list, int32_t config);

// The caller's status word, or a zeroed one of the workspace.
Result<uint32_t*> open_status(uint32_t* status, const Workspace& workspace, const Part& part, device::Stream stream);

}  // namespace quadrille::moe
