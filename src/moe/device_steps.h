// SPDX-License-Identifier: Apache-2.0
// The steps that the forms of the device layer share: choice of tiles, tile lists, and the two products of an MLP with
// the activation and the quantisation between them. Called by device_layer.cpp, device_forms.cpp and
// device_row_parallel.cpp.
#pragma once

#include "moe/device_workspace.h"

namespace quadrille::moe {

class DeviceLayerWatch;

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

// Whether the product of so many rows of one matrix runs in a tile of 8 tokens (DeviceW4A8Gemm::x, norm).
bool has_small_tile(const kernels::DeviceTable& table, const DeviceLinear& linear, int64_t num_rows);

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
  // Not null: row s of the experts is row source_row[s] / source_divisor of act (DeviceW4A8Gemm).
  const int32_t* source_row = nullptr;
  int64_t source_divisor = 1;
};

// The two halves of an MLP, between which tensor-parallel ranks exchange the absmax of their rows.
struct MlpCall {
  const kernels::DeviceTable& table;
  const DeviceMlp& mlp;
  const DeviceRanks& ranks;
  MlpInput input;
  kernels::TileList lists[2];  // of the two products
  GemmConfigs configs;
  const Workspace& workspace;
  const MlpParts& parts;
  device::Stream stream;
  // Is told of both halves (null: nobody looks). Every stage that it reads is then to be in its own part.
  DeviceLayerWatch* watch = nullptr;
  bool is_shared = false;
  bool list_is_older = false;      // than the step in front of the first product
  bool quantises_in_down = false;  // the second product makes its codes itself
};

// GEMM1 with activation. `absmax` [num_rows] or null: where the absmax of each row of h goes; rows from
// *num_rows_there on (null: all are there) get 0.
void enqueue_up(const MlpCall& call, float* absmax = nullptr, const int32_t* num_rows_there = nullptr);

// Quantisation with the given absmax of whole rows (null: with the rows' own), GEMM2. Returns the rows [num_rows,
// hidden] in `rows` (null: in the workspace): bf16; with tensor-parallel ranks partial rows in fp32.
void* enqueue_down(const MlpCall& call, const float* absmax = nullptr, void* rows = nullptr);

// One row-parallel product: partial rows in fp32 and the bias from rank 0 where there are tensor-parallel ranks.
void set_row_parallel(const DeviceRanks& ranks, kernels::DeviceW4A8Gemm* gemm);

// x [count] fp32 on all ranks -> their sum in rank order, rounded into `out`.
Status enqueue_sum(const kernels::DeviceTable& table, const DeviceRanks& ranks, float* x, int64_t count, uint16_t* out,
                   device::Stream stream);

// The problem of one product but for its rows and its output.
kernels::DeviceW4A8Gemm gemm_of(const DeviceLinear& linear, const kernels::TileList& list, int32_t config);

// The caller's status word, or a zeroed one of the workspace.
Result<uint32_t*> open_status(uint32_t* status, const Workspace& workspace, const Part& part, device::Stream stream);

}  // namespace quadrille::moe
