// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/w4a8_gemm/split_launch.cuh"

namespace quadrille::kernels::cuda {
QD_SPLIT_TILES(128)
}  // namespace quadrille::kernels::cuda
