// SPDX-License-Identifier: Apache-2.0
#include "device/peer_rounds.h"

#include "device/random_data.h"
#include "kernels/cuda/launch.h"
#include "numerics/rank_order.h"

namespace quadrille::testing {
namespace {

using kernels::cuda::native;

constexpr int kThreads = 256;

__device__ float value_of(const RoundData& p, int rank, uint32_t round, int64_t index) {
  const uint64_t h = hash(hash(p.seed, static_cast<uint64_t>(rank) << 32 | round), static_cast<uint64_t>(index));
  auto bits = static_cast<uint32_t>(h >> 32);
  // Mostly exponents near each other, so that sums round; sometimes any bits at all, or few of them.
  if (h & 31) bits = (bits & 0x81ffffffu) | 0x3a000000u;
  if ((h >> 5 & 63) == 0) bits &= 0x807fffffu;                          // subnormal
  if ((h >> 11 & 63) == 0) bits &= 0x80000000u;                         // a zero
  if ((h >> 17 & 127) == 0) bits = (bits & 0x80000000u) | 0x7f800000u;  // an infinity
  if ((h >> 24 & 127) == 0) bits |= 0x7f800001u;                        // NaN with a payload
  return numerics::float_of(bits);
}

__global__ void fill_kernel(RoundData p, const RoundState* state) {
  const uint32_t round = state->round;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += stride) {
    p.data[i] = value_of(p, p.rank, round, i);
  }
}

__global__ void delay_kernel(RoundData p, const RoundState* state, uint32_t most_ns) {
  const uint64_t h = hash(p.seed + 1, static_cast<uint64_t>(p.rank) << 32 | state->round);
  if (h & 1) return;  // half of the rounds begin at once
  const uint64_t wait = (h >> 8) % most_ns;
  uint64_t begin = 0, now = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  while (now - begin < wait);
}

__global__ void check_kernel(RoundData p, RoundState* state) {
  const uint32_t round = state->round;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.count; i += stride) {
    float all = value_of(p, 0, round, i);
    for (int r = 1; r < p.num_ranks; ++r) {
      const float part = value_of(p, r, round, i);
      all = p.takes_max ? numerics::max_rank(all, part) : numerics::add_rank(all, part);
    }
    const uint32_t expected = numerics::bits_of(numerics::canonical(all));
    const uint32_t found = numerics::bits_of(p.data[i]);
    if (found == expected) continue;
    if (atomicAdd(&state->differing, 1u) != 0) continue;
    state->first_round = round;
    state->first_index = static_cast<uint32_t>(i);
    state->found = found;
    state->expected = expected;
  }
}

__global__ void next_kernel(RoundState* state) {
  ++state->round;
}

unsigned blocks_of(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 16 ? blocks : 16);
}

}  // namespace

void fill_round(const RoundData& p, const RoundState* state, device::Stream stream) {
  fill_kernel<<<blocks_of(p.count), kThreads, 0, native(stream)>>>(p, state);
  kernels::cuda::check_launch("fill_round");
}
void delay_round(const RoundData& p, const RoundState* state, uint32_t most_ns, device::Stream stream) {
  delay_kernel<<<1, 1, 0, native(stream)>>>(p, state, most_ns);
  kernels::cuda::check_launch("delay_round");
}
void check_round(const RoundData& p, RoundState* state, device::Stream stream) {
  check_kernel<<<blocks_of(p.count), kThreads, 0, native(stream)>>>(p, state);
  kernels::cuda::check_launch("check_round");
}
void next_round(RoundState* state, device::Stream stream) {
  next_kernel<<<1, 1, 0, native(stream)>>>(state);
  kernels::cuda::check_launch("next_round");
}

}  // namespace quadrille::testing
