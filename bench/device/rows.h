// SPDX-License-Identifier: Apache-2.0
// The tables of hopper_bench.
#pragma once

#include <string>
#include <vector>

#include "device/device.h"
#include "kernels/api/device_table.h"

namespace quadrille::bench {

struct BenchOptions {
  bool sustained = true;
  bool all_tiles = false;     // time every tile, not only the chosen one
  std::string only;           // a part of the shape's name; empty: all
  std::vector<int64_t> rows;  // rows an expert, or tokens; empty: those of the table
  kernels::Numerics numerics = kernels::Numerics::kExact;
  int64_t group_size = 128;
  int tensor_ranks = 0;  // at most as many GPUs; 0: all
  int expert_ranks = 0;  // likewise
};

// What a byte and an operation cost at the least (docs/benchmarks.md says where the numbers come from).
inline constexpr double kRoofBytesPerSecond = 3.0e12;
inline constexpr double kRoofFlops = 1.35e15;

// Copies of weights of that size that a replay walks over, so that it never finds them in the 50 MB of L2.
inline int rotating_copies(double bytes) {
  constexpr double kRotateBytes = 4 * 52.0e6;
  const int copies = static_cast<int>(kRotateBytes / bytes) + 1;
  return copies < 2 ? 2 : copies;
}

void print_gemm_rows(const kernels::DeviceTable& table, device::Stream stream, const BenchOptions& options);
void print_layer_rows(const kernels::DeviceTable& table, device::Stream stream, const BenchOptions& options);
void print_rank_rows();
void print_tensor_rows(const BenchOptions& options);
void print_expert_rows(const BenchOptions& options);

}  // namespace quadrille::bench
