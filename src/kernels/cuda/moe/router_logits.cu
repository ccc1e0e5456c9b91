// SPDX-License-Identifier: Apache-2.0
// Router logits and shared-expert gates: lane l of a warp owns lane l of numerics/lane_sum.h, an fma chain over the
// elements l, l + 32, ... Few dot products, and rows that are no multiple of 8: a warp each. Else a warp has a tile of
// eight tokens by eight experts, both transposed in shared memory, so that 16 bytes bring an element of eight rows.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "numerics/bf16.h"
#include "numerics/silu.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kPairWarps = 8;

__device__ __forceinline__ float finished(const DeviceRouterLogits& p, float sum) {
  const float logit = numerics::canonical(sum);
  return p.sigmoid ? numerics::sigmoid(logit) : logit;
}

__global__ void __launch_bounds__(kPairWarps* kLanes) pair_kernel(const __grid_constant__ DeviceRouterLogits p) {
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kPairWarps;
  const int64_t pairs = p.num_tokens * p.num_experts;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * kPairWarps + threadIdx.x / kLanes; pair < pairs;
       pair += stride) {
    const uint16_t* x = p.x + pair / p.num_experts * p.k;
    const uint16_t* w = p.weight + pair % p.num_experts * p.k;
    float sum = 0.0f;
#pragma unroll 32
    for (int64_t i = lane; i < p.k; i += kLanes) {
      sum = __builtin_fmaf(numerics::bf16_to_f32(x[i]), numerics::bf16_to_f32(__ldg(w + i)), sum);
    }
    const float logit = finished(p, warp_tree_sum(sum));
    if (lane == 0) p.logits[pair] = logit;
  }
}

// --- Tiles -----------------------------------------------------------------------------------------------------------

constexpr int kGroup = 8;  // rows of a 16-byte word in shared memory

// A CTA of kTokenWarps x kExpertWarps warps; slabs of columns, two in shared memory. A thread transposes eight rows by
// four columns of each slab.
template <int kTokenWarps, int kExpertWarps>
struct TileShape {
  static constexpr int kThreads = kTokenWarps * kExpertWarps * kLanes;
  static constexpr int kGroups = kTokenWarps + kExpertWarps;
  static constexpr int kColumns = 4;
  static constexpr int kSlab = kThreads / kGroups * kColumns;
  static constexpr int kBytes = 2 * kGroups * kSlab * static_cast<int>(sizeof(uint4));
  static_assert(kThreads % kGroups == 0 && kSlab % kLanes == 0, "a piece for every thread, whole steps");
};

// Columns 8a .. 8a + 7 stay together for the lanes that read them; the writers of a step, four columns apart, meet no
// bank twice.
__device__ __forceinline__ int place_in_slab(int column) {
  return column ^ (column >> 3 & 3);
}

// Four columns of eight rows.
struct Piece {
  uint2 row[kGroup];

  // Rows from `first` on, of `rows` that there are; zeros for the others and behind the last column.
  __device__ __forceinline__ void load(const uint16_t* matrix, int64_t first, int64_t rows, int64_t k, int64_t column) {
#pragma unroll
    for (int r = 0; r < kGroup; ++r) {
      const bool exists = first + r < rows && column < k;
      row[r] = exists ? *reinterpret_cast<const uint2*>(matrix + (first + r) * k + column) : make_uint2(0, 0);
    }
  }
  template <int kColumn>
  __device__ __forceinline__ uint4 transposed() const {
    uint32_t word[kGroup / 2];
#pragma unroll
    for (int i = 0; i < kGroup / 2; ++i) {
      const uint32_t low = kColumn < 2 ? row[2 * i].x : row[2 * i].y;
      const uint32_t high = kColumn < 2 ? row[2 * i + 1].x : row[2 * i + 1].y;
      word[i] = __byte_perm(low, high, kColumn % 2 == 0 ? 0x5410 : 0x7632);
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
  }
  __device__ __forceinline__ void store(uint4* slab, int column) const {
    slab[place_in_slab(column)] = transposed<0>();
    slab[place_in_slab(column + 1)] = transposed<1>();
    slab[place_in_slab(column + 2)] = transposed<2>();
    slab[place_in_slab(column + 3)] = transposed<3>();
  }
};

__device__ __forceinline__ void widen(const uint4& v, float (&x)[kGroup]) {
  const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = numerics::float_of(word[i] << 16);
    x[2 * i + 1] = numerics::float_of(word[i] & 0xffff0000u);
  }
}

// value[i] summed over the lanes in the tree of lane_sum.h, for 64 values at once: at each distance a lane keeps half
// of them and gives the other half away. Lane l ends with the sums 2 l and 2 l + 1 in value[0] and value[1].
template <int kCount>
__device__ __forceinline__ void tree_sums(float (&value)[kGroup * kGroup], int lane) {
  constexpr int kDistance = kCount / 4;
  const bool upper = (lane & kDistance) != 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float kept = upper ? value[i + kCount / 2] : value[i];
    const float given = upper ? value[i] : value[i + kCount / 2];
    value[i] = kept + __shfl_xor_sync(kWholeWarp, given, kDistance);
  }
  if constexpr (kDistance > 1) tree_sums<kCount / 2>(value, lane);
}

template <int kTokenWarps, int kExpertWarps>
__global__ void __launch_bounds__(TileShape<kTokenWarps, kExpertWarps>::kThreads,
                                  512 / TileShape<kTokenWarps, kExpertWarps>::kThreads)
    tile_kernel(const __grid_constant__ DeviceRouterLogits p) {
  using Shape = TileShape<kTokenWarps, kExpertWarps>;
  extern __shared__ __align__(16) uint4 slabs[];  // [2][groups][columns of a slab]
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * kTokenWarps * kGroup;
  const int64_t first_expert = static_cast<int64_t>(blockIdx.y) * kExpertWarps * kGroup;
  // The piece of each slab that this thread brings: the groups of tokens come first.
  const int group = static_cast<int>(threadIdx.x) / (Shape::kSlab / Shape::kColumns);
  const int own_column = static_cast<int>(threadIdx.x) % (Shape::kSlab / Shape::kColumns) * Shape::kColumns;
  const bool brings_x = group < kTokenWarps;
  const uint16_t* matrix = brings_x ? p.x : p.weight;
  const int64_t rows = brings_x ? p.num_tokens : p.num_experts;
  const int64_t first_row = brings_x ? first_token + group * kGroup : first_expert + (group - kTokenWarps) * kGroup;
  const int token_group = warp % kTokenWarps, expert_group = warp / kTokenWarps;
  const int place = place_in_slab(lane);
  ptx::wait_for_predecessor();
  ptx::let_successor_start();

  float sum[kGroup * kGroup] = {};
  Piece piece;
  piece.load(matrix, first_row, rows, p.k, own_column);
  int stage = 0;
  for (int64_t first = 0; first < p.k; first += Shape::kSlab, stage ^= 1) {
    uint4* slab = slabs + stage * Shape::kGroups * Shape::kSlab;
    piece.store(slab + group * Shape::kSlab, own_column);
    __syncthreads();  // the slab stands; the one before the last is read
    piece.load(matrix, first_row, rows, p.k, first + Shape::kSlab + own_column);
    const uint4* x_slab = slab + token_group * Shape::kSlab + place;
    const uint4* w_slab = slab + (kTokenWarps + expert_group) * Shape::kSlab + place;
    const int columns = static_cast<int>(p.k - first < Shape::kSlab ? p.k - first : Shape::kSlab);
#pragma unroll 2
    for (int column = 0; column + lane < columns; column += kLanes) {
      float x[kGroup], w[kGroup];
      widen(x_slab[column], x);
      widen(w_slab[column], w);
#pragma unroll
      for (int t = 0; t < kGroup; ++t) {
#pragma unroll
        for (int e = 0; e < kGroup; ++e) sum[t * kGroup + e] = __builtin_fmaf(x[t], w[e], sum[t * kGroup + e]);
      }
    }
  }
  tree_sums<kGroup * kGroup>(sum, lane);
  const int64_t token = first_token + token_group * kGroup + 2 * lane / kGroup;
  const int64_t expert = first_expert + expert_group * kGroup + 2 * lane % kGroup;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (token < p.num_tokens && expert + i < p.num_experts) {
      p.logits[token * p.num_experts + expert + i] = finished(p, sum[i]);
    }
  }
}

template <int kTokenWarps, int kExpertWarps>
void launch_tiles(const DeviceRouterLogits& p, cudaStream_t stream) {
  using Shape = TileShape<kTokenWarps, kExpertWarps>;
  const auto kernel = tile_kernel<kTokenWarps, kExpertWarps>;
  if constexpr (Shape::kBytes > 48 * 1024) {
    QD_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes) == cudaSuccess,
             "shared memory of the router's tiles");
  }
  const dim3 grid(ceil_div(p.num_tokens, kTokenWarps * kGroup), ceil_div(p.num_experts, kExpertWarps * kGroup));
  launch_chained(kernel, grid, Shape::kThreads, Shape::kBytes, stream, p);
  check_launch("router_logits, tiles");
}

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

}  // namespace

void router_logits(const DeviceRouterLogits& p, device::Stream stream) {
  constexpr int64_t kFewTokens = 8, kFewExperts = 4, kManyTokens = 1024;
  constexpr int64_t kMostBlocks = 1 << 20;
  QD_CHECK(p.num_tokens >= 0 && p.num_experts >= 1 && p.k >= 1, "shapes of the router's product");
  if (p.num_tokens == 0) return;
  const bool fits = p.k % 8 == 0 && on_16_bytes(p.x) && on_16_bytes(p.weight) && p.num_experts <= 65535 * kGroup &&
                    p.num_tokens <= INT32_MAX;
  if (p.num_tokens <= kFewTokens || p.num_experts <= kFewExperts || !fits) {
    const int64_t blocks = (p.num_tokens * p.num_experts + kPairWarps - 1) / kPairWarps;
    launch_chained(pair_kernel, static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks), kPairWarps * kLanes,
                   0, native(stream), p);
    return check_launch("router_logits, pairs");
  }
  if (p.num_tokens < kManyTokens) return launch_tiles<2, 2>(p, native(stream));
  launch_tiles<4, 4>(p, native(stream));
}

}  // namespace quadrille::kernels::cuda
