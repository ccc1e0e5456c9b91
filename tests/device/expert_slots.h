// SPDX-License-Identifier: Apache-2.0
// The experts that an expert-parallel rank holds, copied out of a stack of all of them.
#pragma once

#include <vector>

#include "device/device_memory.h"
#include "layout/w4_hopper64.h"
#include "moe/device_layer.h"

namespace quadrille::testing {

// In the order of the rank's slots; what the result names lies in `memory`.
inline moe::DeviceLinear slots_of(const moe::DeviceLinear& whole, const std::vector<int32_t>& experts, Memory* memory,
                                  device::Stream stream) {
  moe::DeviceLinear out = whole;
  const auto count = static_cast<int64_t>(experts.size());
  const int64_t rows =
      layout::W4Hopper64{whole.n, whole.k, whole.group_size, whole.numerics == kernels::Numerics::kVllm}.padded_n();
  out.num_experts = count;
  auto* weights = memory->take<uint8_t>(count * whole.expert_stride, 256, stream);
  out.weights = weights;
  const auto copy_rows = [&](const float* from) -> const float* {
    if (from == nullptr) return nullptr;
    auto* to = memory->take<float>(count * rows, 4, stream);
    for (int64_t slot = 0; slot < count; ++slot) {
      must(device::copy_on_device(to + slot * rows, from + experts[static_cast<size_t>(slot)] * rows,
                                  static_cast<size_t>(rows) * sizeof(float), stream));
    }
    return to;
  };
  out.channel_scale = copy_rows(whole.channel_scale);
  out.bias = copy_rows(whole.bias);
  for (int64_t slot = 0; slot < count; ++slot) {
    must(device::copy_on_device(weights + slot * whole.expert_stride,
                                whole.weights + experts[static_cast<size_t>(slot)] * whole.expert_stride,
                                static_cast<size_t>(whole.expert_stride), stream));
  }
  return out;
}

}  // namespace quadrille::testing
