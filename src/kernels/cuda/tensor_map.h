// SPDX-License-Identifier: Apache-2.0
// Descriptors for the tensor copy engine, made on the host from plain pointers.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace quadrille::kernels::cuda {

// [rows, pitch] bytes, boxes of `box_rows` x 128 bytes in 128-byte swizzle; what lies outside arrives as zeros. `data`
// 16-byte aligned, pitch a multiple of 16. Throws LaunchFailure with the driver's reason.
CUtensorMap activation_map(const uint8_t* data, int64_t rows, int64_t pitch, int box_rows);

}  // namespace quadrille::kernels::cuda
