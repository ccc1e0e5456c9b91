// SPDX-License-Identifier: Apache-2.0
// Ceilings of a GPU, probed by kernels that do one thing: read memory, or multiply e4m3 values that are in shared
// memory and registers already. A measurement's floor is its bytes and operations over these. Called by the program's
// bench.
#pragma once

#include <cstdint>

namespace quadrille::kernels {

// Reads `bytes` (a multiple of 16) from `memory` once, in order, by all multiprocessors.
struct DeviceProbeRead {
  const void* memory = nullptr;  // 16-byte aligned
  int64_t bytes = 0;
  int num_multiprocessors = 0;
  uint32_t* sink = nullptr;  // [1] device: written only if the bytes had a value that random data has not
};

// Multiplies e4m3 by e4m3 into fp32 on the tensor cores of all multiprocessors: `loops` times kProbeOperationsALoop on
// each. Operands are made of the random values, all of them finite: zeros and small integers would draw less power and
// run faster than real work.
struct DeviceProbeProducts {
  const uint8_t* values = nullptr;  // [kProbeValueBytes] random, 16-byte aligned
  int64_t loops = 0;
  int num_multiprocessors = 0;
  float* sink = nullptr;  // [1] device
};
inline constexpr int64_t kProbeValueBytes = 128 * 128;
// Four warpgroups, each 64 x 128 over 128 k; a multiplication and its addition are two.
inline constexpr int64_t kProbeOperationsALoop = int64_t{4} * 64 * 128 * 128 * 2;

}  // namespace quadrille::kernels
