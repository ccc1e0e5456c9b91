// SPDX-License-Identifier: Apache-2.0
// Residual sum (of the experts' rows, too), RMSNorm and FP8 codes in one pass over a row: a block a row. The sum of
// squares is 32 chains (numerics/lane_sum.h): the lanes of one warp, which reads the row from shared memory while the
// others wait.
#include "core/check.h"
#include "kernels/cuda/decoder/norm_row.cuh"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/chain.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int64_t kMostWidth = 24000;  // of a row in shared memory

// What is added to vector i of row t, as bf16.
__device__ __forceinline__ uint4 update_of(const DeviceAddNorm& p, int64_t t, int64_t i) {
  if (p.update != nullptr) return vector_at(p.update, t, p.width, i);
  const float4* update = reinterpret_cast<const float4*>(p.update_f32 + t * p.width) + 2 * i;
  const float4 a = update[0], b = update[1];
  const float sum[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  return pack(sum);
}

// kOneVector: no thread has more than one vector of the row, which stays in registers; else the row lives in shared
// memory. kAtOnce: the update is that of p.combine, so many of a token's rows at once; 0: it is not.
template <bool kOneVector, int kAtOnce, int kThreads = kMostThreads>
__global__ void __launch_bounds__(kThreads, kThreads == kMostThreads ? 1 : 4)
    add_norm_kernel(const __grid_constant__ DeviceAddNorm p) {
  extern __shared__ __align__(16) uint4 row[];
  __shared__ float norm_scale;
  __shared__ uint32_t of_warps[kNormLanes];
  const int threads = static_cast<int>(blockDim.x);
  const int own = static_cast<int>(threadIdx.x);
  const int lane = own % kNormLanes;
  const int vectors = static_cast<int>(p.width) / kVectorColumns;
  const int64_t r = blockIdx.x;
  const uint4* const weights = reinterpret_cast<const uint4*>(p.weight);
  uint4 held = {}, own_weight = {};
  if (kOneVector && p.weight != nullptr && own < vectors) own_weight = __ldg(weights + own);
  const auto each = [&](const auto& step) {
    if constexpr (kOneVector) {
      if (own < vectors) step(own, held);
    } else {
      for (int i = own; i < vectors; i += threads) step(i, row[i]);
    }
  };
  constexpr bool kCombines = kAtOnce != 0;
  Routes<kCombines ? kAtOnce : 1> routes;
  const bool is_early = kCombines && p.routes_are_older;
  if (is_early) routes.load(p.combine, p.rows == nullptr ? r : p.rows[r], 0);
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int64_t t = p.rows == nullptr ? r : p.rows[r];
  if (kCombines && !is_early) routes.load(p.combine, t, 0);
  each([&](int i, uint4& v) {
    uint4 x = vector_at(p.x, t, p.width, i);
    if (kCombines || p.update != nullptr || p.update_f32 != nullptr) {
      x = sum_of(x, kCombines ? combined(p.combine, t, i, routes) : update_of(p, t, i));
      reinterpret_cast<uint4*>((p.x_out != nullptr ? p.x_out : p.x) + t * p.width)[i] = x;
    }
    v = x;
    row[i] = x;
  });
  if (p.weight == nullptr) return;
  __syncthreads();  // the row stands
  if (own < kNormLanes) {
    const float sum =
        warp_tree_sum(squares_of_lane(reinterpret_cast<const uint16_t*>(row), static_cast<int>(p.width), lane));
    if (lane == 0) norm_scale = numerics::rms_scale(sum, p.width, p.eps);
  }
  __syncthreads();  // its scale stands
  float absmax = 0.0f;
  each([&](int i, uint4& v) {
    absmax = normalised(v, kOneVector ? own_weight : __ldg(weights + i), norm_scale, absmax);
    if (p.normed != nullptr) reinterpret_cast<uint4*>(p.normed + r * p.width)[i] = v;
  });
  if (p.act == nullptr) return;
  const float scale = scale_of_block(absmax, of_warps);
  if (own == 0) p.act_scale[r] = scale;
  const Divisor divisor = divisor_of(scale);
  uint2* codes = reinterpret_cast<uint2*>(p.act + r * p.act_pitch);
  each([&](int i, uint4& v) {
    float x[8];
    unpack(v, x);
    codes[i] = e4m3_codes(x, divisor);
  });
  for (int64_t i = vectors + own; i < p.act_pitch / kVectorColumns; i += threads) codes[i] = make_uint2(0, 0);
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

void check_update(const DeviceAddNorm& p) {
  const DeviceCombine& c = p.combine;
  const int updates = (p.update != nullptr) + (p.update_f32 != nullptr) + (c.rows != nullptr);
  QD_CHECK(updates <= 1, "one update");
  QD_CHECK(on_16_bytes(p.update) && on_16_bytes(p.update_f32) && on_16_bytes(c.rows) && on_16_bytes(c.shared),
           "updates on 16 bytes");
  if (c.rows != nullptr) QD_CHECK(c.width == p.width && c.top_k >= 0, "experts' rows of the stream's width");
}

}  // namespace

void add_norm(const DeviceAddNorm& p, device::Stream stream) {
  QD_CHECK(p.num_rows >= 0 && p.num_rows <= INT32_MAX, "rows of the norm");
  QD_CHECK(p.width >= kVectorColumns && p.width % kVectorColumns == 0 && p.width <= kMostWidth,
           "a width that is a multiple of 8, at most 24000");
  check_update(p);
  QD_CHECK(
      on_16_bytes(p.x) && on_16_bytes(p.x_out) && on_16_bytes(p.weight) && on_16_bytes(p.normed) && on_16_bytes(p.act),
      "rows on 16 bytes");
  QD_CHECK(p.act == nullptr || (p.act_pitch >= p.width && p.act_pitch % 16 == 0), "a pitch that holds the codes");
  QD_CHECK(p.weight != nullptr || (p.normed == nullptr && p.act == nullptr), "weights of the norm");
  if (p.num_rows == 0) return;
  const int64_t vectors = p.width / kVectorColumns;
  const bool one = vectors <= kMostThreads;
  const int64_t threads = one ? (vectors + kNormLanes - 1) / kNormLanes * kNormLanes : kMostThreads;
  const bool combines = p.combine.rows != nullptr;
  // Of many rows more blocks a multiprocessor are worth more than all rows of a token in flight.
  constexpr int kMany = 512, kSmallBlock = 256;
  auto* combining = p.num_rows > kMany && threads <= kSmallBlock ? add_norm_kernel<true, 4, kSmallBlock>
                    : one                                        ? add_norm_kernel<true, kRowsAtOnce>
                                                                 : add_norm_kernel<false, kRowsAtOnce>;
  auto* kernel = combines ? combining : one ? add_norm_kernel<true, 0> : add_norm_kernel<false, 0>;
  launch_chained(kernel, static_cast<unsigned>(p.num_rows), static_cast<unsigned>(threads),
                 static_cast<size_t>(p.width * 2), native(stream), p);
  check_launch("add_norm");
}

}  // namespace quadrille::kernels::cuda
