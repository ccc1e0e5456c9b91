// SPDX-License-Identifier: Apache-2.0
// What the roles of the shared form know of their launch and their place in it.
#pragma once

#include "kernels/cuda/w4a8_gemm/split_plan.h"
#include "kernels/cuda/w4a8_gemm/work.cuh"

namespace quadrille::kernels::cuda {

// What a launch reads besides GemmArguments where its input is not codes.
struct SplitArguments {
  const uint16_t* x;          // kRows
  int32_t k;                  // kRows
  const int32_t* source_row;  // kGathered
  int32_t source_divisor;
};

// Cluster of `ctas` (1, 2, 4), this one is `rank`.
struct SplitPlace {
  uint8_t* shared;
  uint32_t base;  // its address
  int ctas;
  int log_ctas;  // a division costs some 150 clocks before the first byte is asked for
  int rank;
  __device__ int first_item() const { return static_cast<int>(blockIdx.x) >> log_ctas; }
  __device__ int item_stride() const { return static_cast<int>(gridDim.x) >> log_ctas; }
};

}  // namespace quadrille::kernels::cuda
