// SPDX-License-Identifier: Apache-2.0
// What a device layer is checked for before any work: shapes and rules first, then where its memory lies. Called by
// device_layer.cpp, device_forms.cpp and device_row_parallel.cpp.
#pragma once

#include "moe/device_layer.h"

namespace quadrille::moe {

// Rows of a grouped product, tokens times choices: slots are 32-bit.
inline constexpr int64_t kMaxRows = (int64_t{1} << 31) - 1;
// Features of a matrix, two parts of what the preparation takes: kernels have 32-bit coordinates.
inline constexpr int64_t kMaxFeatures = int64_t{1} << 25;

// Shapes, numerics and activation of an MLP of `num_experts` experts; of a shard down's K may be wider than what is
// held. `name` goes before the error.
Status check_device_mlp(const DeviceMlp& mlp, const char* name, bool is_split = false);
// `held` columns from `offset` on in rows of `k`.
Status check_columns(int64_t held, int64_t offset, int64_t k);
// One matrix stack: legal n, k, group size and numerics.
Status check_device_linear(const DeviceLinear& linear, const char* name);
Status check_row_count(int64_t rows, const char* what);

// Pointers, strides and alignment of prepared weights.
Status check_linear_memory(const DeviceLinear& linear, const char* name);
Status check_mlp_memory(const DeviceMlp& mlp, const char* name);

// A pointer that must be there and be aligned.
Status check_pointer(const void* pointer, uintptr_t alignment, const char* name);
// A workspace of at least `needed` bytes, 256-byte aligned.
Status check_workspace(const void* workspace, size_t size, size_t needed);
// Every stream and event of a call; `has_shared` as the layer is.
Status check_streams(const DeviceStreams& streams, bool has_shared);

}  // namespace quadrille::moe
