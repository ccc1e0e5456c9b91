// SPDX-License-Identifier: Apache-2.0
// The driver's encoder is found through the runtime: the program does not link libcuda and starts without a driver.
#include "kernels/cuda/tensor_map.h"

#include <cuda_runtime.h>

#include <string>

#include "kernels/cuda/launch.h"

namespace quadrille::kernels::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw LaunchFailure("the driver has no cuTensorMapEncodeTiled: a driver for CUDA 12 or newer is needed");
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap activation_map(const uint8_t* data, int64_t rows, int64_t pitch, int box_rows) {
  static const Encode encode = find_encoder();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(pitch), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box[2] = {128, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<uint8_t*>(data), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw LaunchFailure("tensor map of [" + std::to_string(rows) + ", " + std::to_string(pitch) +
                        "] bytes refused: driver error " + std::to_string(static_cast<int>(result)));
  }
  return map;
}

}  // namespace quadrille::kernels::cuda
