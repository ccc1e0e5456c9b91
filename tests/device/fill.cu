// SPDX-License-Identifier: Apache-2.0
// One grid-stride kernel for all fills: element i = value(i).
#include "device/fill.h"

#include "device/random_data.h"
#include "kernels/cuda/launch.h"

namespace quadrille::testing {
namespace {

constexpr int kThreads = 256;

template <typename T, typename Value>
__global__ void fill_kernel(T* out, int64_t count, Value value) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) out[i] = value(i);
}

struct Word {
  uint64_t seed;
  uint32_t flip;
  __device__ uint32_t operator()(int64_t i) const { return code_word(seed, i) ^ flip; }
};
struct Code {
  uint64_t seed;
  __device__ int8_t operator()(int64_t i) const { return code_value(seed, i); }
};
struct Scale {
  uint64_t seed;
  __device__ uint16_t operator()(int64_t i) const { return scale_bits(seed, i); }
};
struct SmallNumber {
  uint64_t seed;
  __device__ float operator()(int64_t i) const { return small_number(seed, i); }
};
struct SmallWeight {
  uint64_t seed;
  __device__ uint16_t operator()(int64_t i) const { return small_weight_bits(seed, i); }
};
struct Activation {
  uint64_t seed;
  const int64_t* keys;
  int64_t hidden;
  bool nonfinite;
  __device__ uint16_t operator()(int64_t i) const {
    return activation_bits(seed, keys[i / hidden], i % hidden, hidden, nonfinite);
  }
};
struct E4M3 {
  uint64_t seed;
  __device__ uint8_t operator()(int64_t i) const { return e4m3_bits(seed, i); }
};

template <typename T, typename Value>
void fill(T* out, int64_t count, const Value& value, device::Stream stream) {
  if (count == 0) return;
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  fill_kernel<<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), kThreads, 0, kernels::cuda::native(stream)>>>(
      out, count, value);
  kernels::cuda::check_launch("fill_kernel");
}

}  // namespace

void fill_codes(void* codes, int64_t count, kernels::W4Source source, uint64_t seed, device::Stream stream) {
  if (source == kernels::W4Source::kInt8) return fill(static_cast<int8_t*>(codes), count, Code{seed}, stream);
  const uint32_t flip = source == kernels::W4Source::kInt4 ? 0x88888888u : 0u;
  fill(static_cast<uint32_t*>(codes), count / 8, Word{seed, flip}, stream);
}
void fill_scales(uint16_t* scales, int64_t count, uint64_t seed, device::Stream stream) {
  fill(scales, count, Scale{seed}, stream);
}
void fill_small_numbers(float* values, int64_t count, uint64_t seed, device::Stream stream) {
  fill(values, count, SmallNumber{seed}, stream);
}
void fill_small_weights(uint16_t* values, int64_t count, uint64_t seed, device::Stream stream) {
  fill(values, count, SmallWeight{seed}, stream);
}
void fill_activations(uint16_t* x, const int64_t* keys, int64_t num_tokens, int64_t hidden, bool nonfinite,
                      uint64_t seed, device::Stream stream) {
  fill(x, num_tokens * hidden, Activation{seed, keys, hidden, nonfinite}, stream);
}
void fill_e4m3(uint8_t* codes, int64_t count, uint64_t seed, device::Stream stream) {
  fill(codes, count, E4M3{seed}, stream);
}

}  // namespace quadrille::testing
