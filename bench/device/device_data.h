// SPDX-License-Identifier: Apache-2.0
// Random data on the device: prepared weights of any size (uniform codes, plausible scales), activations, routes.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "device/device.h"
#include "kernels/api/device_problems.h"

namespace quadrille::bench {

template <typename T>
device::Buffer upload(const std::vector<T>& host, device::Stream stream);

// `experts` matrices of the map, expert_stride() apart. Every record is one of a few thousand random ones: DRAM and
// cache see no repetition they could use.
int64_t expert_stride(const layout::W4Hopper64& map);
device::Buffer random_weights(const layout::W4Hopper64& map, int64_t experts, device::Stream stream);
device::Buffer random_floats(int64_t count, float low, float high, device::Stream stream);
// e4m3 codes of N(0, 1) values scaled to use the format; `pitch` bytes a row, zeros behind k.
device::Buffer random_codes(int64_t rows, int64_t k, int64_t pitch, device::Stream stream);
device::Buffer random_bf16(int64_t count, device::Stream stream);

// Softmax top-k routing of random logits: ids [tokens, k] without repetition in a token.
std::vector<int32_t> random_routes(int64_t tokens, int64_t top_k, int64_t experts, std::mt19937& random);
std::vector<int32_t> zipf_routes(int64_t tokens, int64_t top_k, int64_t experts, double exponent, std::mt19937& random);

// The tile list of experts with these rows.
std::vector<kernels::TokenTile> cut_tiles(const std::vector<int64_t>& rows, int32_t tokens);

}  // namespace quadrille::bench

#include "bench/device/timing.h"

namespace quadrille::bench {
template <typename T>
device::Buffer upload(const std::vector<T>& host, device::Stream stream) {
  const size_t bytes = host.size() * sizeof(T);
  auto buffer = must(device::Buffer::allocate(bytes < 256 ? 256 : bytes, stream));
  must(device::copy_to_device(buffer.get(), host.data(), bytes, stream));
  must(device::synchronize(stream));
  return buffer;
}
}  // namespace quadrille::bench
