// SPDX-License-Identifier: Apache-2.0
// How much of a GPU's memory a model takes, computed before anything is copied: integers alone, so it is tested
// without a GPU. Called by device_model.cpp.
#pragma once

#include <cstdint>
#include <string>

#include "core/result.h"

namespace quadrille::model {

// `--gpu-memory`: bytes, or a share of the GPU's memory. Neither: all that is free.
struct GpuMemoryLimit {
  uint64_t bytes = 0;
  double fraction = 0;
};
// "0.8" (up to 1), "20000000000", "20G", "20GiB" (G and GiB: 2^30; M and MiB, K and KiB alike). Errors:
// kInvalidArgument with what is legal.
Result<GpuMemoryLimit> parse_gpu_memory(const std::string& text);

struct DeviceMemoryRequest {
  uint64_t weight_bytes = 0;
  uint64_t position_bytes = 0;   // cos and sin
  uint64_t workspace_bytes = 0;  // of the largest step
  uint64_t load_bytes = 0;       // staging, free again when the weights stand
  uint64_t page_bytes = 0;
  // Pages by number, else by bytes, else `default_pages`.
  int64_t cache_pages = 0;
  uint64_t cache_bytes = 0;
  int64_t default_pages = 1;
};

struct DeviceMemoryPlan {
  uint64_t budget_bytes = 0;
  int64_t num_pages = 0;
  uint64_t cache_bytes = 0;
  uint64_t needed_bytes = 0;  // of everything, the reserve included
};

// Kept for the graphs, the modules and the fragments of the pool.
inline constexpr uint64_t kDeviceReserveBytes = uint64_t{256} << 20;

// Errors: kCapacity with every part of the sum, what there is and what to do, where it does not fit.
Result<DeviceMemoryPlan> plan_device_memory(const DeviceMemoryRequest& request, const GpuMemoryLimit& limit,
                                            uint64_t free_bytes, uint64_t total_bytes);

}  // namespace quadrille::model
