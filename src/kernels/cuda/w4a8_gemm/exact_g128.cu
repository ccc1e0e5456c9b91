// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/w4a8_gemm/launch.cuh"

namespace quadrille::kernels::cuda {
QD_GEMM_TILES(kExact, 128, QD_ALL_TILES)
}  // namespace quadrille::kernels::cuda
