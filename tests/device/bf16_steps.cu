// SPDX-License-Identifier: Apache-2.0
// One block of 64 keys, computed by the warps' functions (block.cuh) and by the warpgroup's instructions.
#include "device/bf16_steps.h"

#include "device/random_data.h"
#include "kernels/cuda/attention/block.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/warpgroup.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"
#include "kernels/cuda/ptx/wgmma_bf16.cuh"

namespace quadrille::testing {
namespace {

using namespace kernels::cuda;

constexpr int kDim = 128;
constexpr int kThreads = 128;
constexpr int kOnesBytes = 4096;
constexpr int kSharedBytes = Tile<kDim>::kBytes + kOnesBytes;

__device__ uint32_t number(Bf16Numbers numbers, uint64_t name) {
  const uint64_t h = hash(name, 0xb16);
  const auto fraction = static_cast<uint32_t>(h >> 1 & 127);
  const auto with = [&](int low, int high) {
    const auto exponent =
        static_cast<uint32_t>(low) + static_cast<uint32_t>(h >> 20) % static_cast<uint32_t>(high - low + 1);
    return static_cast<uint32_t>(h & 1) << 15 | exponent << 7 | fraction;
  };
  switch (numbers) {
    case Bf16Numbers::kNearOne:
      return with(122, 128);
    case Bf16Numbers::kWide:
      return with(90, 160);
    case Bf16Numbers::kAnyBits:
      return static_cast<uint32_t>(h >> 20 & 0xffffu);
    case Bf16Numbers::kCancelling:
      return (with(127, 127) & 0xff80u) | fraction % 3;
    case Bf16Numbers::kSubnormal:
      return with(0, 0);
    case Bf16Numbers::kSparse:
      return h >> 60 < 12 ? static_cast<uint32_t>(h & 1) << 15 : with(115, 135);
    case Bf16Numbers::kOverflowing:
      return with(180, 200);
    default:
      return with(40, 70);
  }
}
__device__ uint32_t pair(Bf16Numbers numbers, uint64_t name) {
  return number(numbers, 2 * name) | number(numbers, 2 * name + 1) << 16;
}

__device__ void note(uint64_t* count, uint64_t differing) {
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  if (differing > 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(count), static_cast<unsigned long long>(differing));
}
template <int Rows>
__device__ uint64_t differing(const float (&a)[Rows][4], const float (&b)[Rows][4]) {
  uint64_t count = 0;
#pragma unroll
  for (int i = 0; i < 4 * Rows; ++i) count += __float_as_uint(a[i / 4][i % 4]) != __float_as_uint(b[i / 4][i % 4]);
  return count;
}

__device__ void reordered_scores(const uint32_t (&query)[kDim / 16][4], const uint8_t* tile, int lane,
                                 float (&score)[8][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    score[j][0] = score[j][1] = score[j][2] = score[j][3] = 0.0f;
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
      uint32_t key[4];
      ptx::load_matrices(ptx::shared_address(tile) + key_piece_at(j, s / 2, lane), key);
      const int first = s % 2 * 2;
      ptx::mma_bf16(score[j], query[s][2], query[s][3], query[s][0], query[s][1], key[first + 1], key[first]);
    }
  }
}

__global__ void __launch_bounds__(kThreads, 1)
    steps_kernel(Bf16Numbers numbers, uint64_t seed, Bf16StepDifferences* result) {
  extern __shared__ __align__(128) uint8_t tile[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint64_t name = hash(seed, blockIdx.x);
  uint32_t* words = reinterpret_cast<uint32_t*>(tile);
  for (int i = static_cast<int>(threadIdx.x); i < kSharedBytes / 4; i += kThreads) {
    words[i] = i < Tile<kDim>::kBytes / 4 ? pair(numbers, name + i) : 0x3f803f80u;
  }
  Queries<kDim> queries;
  uint32_t query[kDim / 16][4];
  Weights weights;
  const uint64_t own = hash(name, threadIdx.x);
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      query[s][i] = pair(numbers, own + 4 * s + i);
      if (s < 4) weights.a[s][i] = pair(numbers, own + 1000 + 4 * s + i);
    }
  }
#pragma unroll
  for (int c = 0; c < kDim / 32; ++c) {
    const uint32_t(&a)[4] = query[2 * c];
    const uint32_t(&b)[4] = query[2 * c + 1];
    queries.row[0][c] = make_uint4(a[0], a[2], b[0], b[2]);
    queries.row[1][c] = make_uint4(a[1], a[3], b[1], b[3]);
  }
  ptx::fence_shared_writes();
  __syncthreads();  // the block stands
  float score[8][4], other[8][4];
  const uint64_t keys = ptx::chunk_descriptor(ptx::shared_address(tile), 16);
  ptx::wgmma_fence();
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
    ptx::wgmma_rows<kKeyBlock>(reinterpret_cast<float(&)[32]>(score), query[s], keys + s / 2 * 256 + s % 2 * 2, s > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::pin(reinterpret_cast<float(&)[32]>(score));
  float reference[8][4];
  block_scores<kDim>(queries, tile, lane, reference);
  note(&result->compared, 32);
  note(&result->scores, differing(score, reference));
  reordered_scores(query, tile, lane, other);
  note(&result->reordered, differing(other, reference));

  float sum[kDim / 8 + 1][4];
  const uint64_t values = ptx::chunk_descriptor(ptx::shared_address(tile) + Tile<kDim>::kKeyBytes, 4096);
  ptx::wgmma_fence();
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    ptx::wgmma_columns<kDim + 8>(reinterpret_cast<float(&)[kDim / 2 + 4]>(sum), weights.a[s], values + s * 64, s > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::pin(reinterpret_cast<float(&)[kDim / 2 + 4]>(sum));
#pragma unroll
  for (int c = 0; c < kDim / 32; ++c) {
    float part[4][4], same[4][4];
    block_values<kDim>(weights, tile, c, lane, part);
#pragma unroll
    for (int i = 0; i < 16; ++i) same[i / 4][i % 4] = sum[4 * c + i / 4][i % 4];
    note(&result->values, differing(part, same));
  }
  float norm[1][4] = {}, same[1][4];
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    ptx::mma_bf16(norm[0], weights.a[s][0], weights.a[s][1], weights.a[s][2], weights.a[s][3], 0x3f803f80u,
                  0x3f803f80u);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) same[0][i] = sum[kDim / 8][i];
  note(&result->norms, differing(norm, same));
}

}  // namespace

void compare_bf16_steps(Bf16Numbers numbers, uint64_t seed, int blocks, Bf16StepDifferences* result,
                        device::Stream stream) {
  steps_kernel<<<static_cast<unsigned>(blocks), kThreads, kSharedBytes, native(stream)>>>(numbers, seed, result);
  check_launch("bf16 steps");
}

}  // namespace quadrille::testing
