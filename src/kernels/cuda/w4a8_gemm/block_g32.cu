// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/w4a8_gemm/launch.cuh"

namespace quadrille::kernels::cuda {
QD_GEMM_TILES(kBlock, 32, QD_BLOCK_TILES)
}  // namespace quadrille::kernels::cuda
