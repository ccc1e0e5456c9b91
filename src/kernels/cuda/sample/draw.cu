// SPDX-License-Identifier: Apache-2.0
// Draws with temperature, top-k, top-p and min-p: a CTA a row, the tokens of engine/sampler.h for the same logits, seed
// and index. Weights are whole steps of a grid (numerics/sampling.h), so every sum is exact in any order; the cuts of
// top-k and top-p are found byte by byte of a 64-bit rank.
#include "core/check.h"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/sample/best.cuh"
#include "numerics/sampling.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 256;
using Count = unsigned long long;

struct Shared {
  Best best_of_warp[kWarps];
  Count bins[kBins];
  Count sum_of_warp[kWarps];
  Count above;  // what ranks above the bins in question hold
  int bin;      // that holds the cut; -1: none
  int last;     // the last id that may be drawn
  int drawn;    // -1: nobody found it
};

// A row of logits with its rule and the cut so far: ids of rank `cut` and above are kept.
struct Row {
  const float* logits;
  int64_t vocab;
  float top;
  double temperature;
  double min_p;
  uint64_t cut;

  __device__ __forceinline__ Count steps(int64_t i) const {
    return numerics::weight_steps(__ldg(logits + i), top, temperature);
  }
  __device__ __forceinline__ uint64_t rank(int64_t i) const { return greedy_key(__ldg(logits + i), i); }
};
__device__ __forceinline__ double as_weight(Count steps) {
  return static_cast<double>(steps) * numerics::kWeightGrid;
}

__device__ __forceinline__ Count sum_of_warp(Count own) {
  for (int d = 16; d > 0; d /= 2) own += __shfl_xor_sync(kAllLanes, own, d);
  return own;
}
// The sum of all threads, for all threads.
__device__ __forceinline__ Count sum_of_block(Count own, Shared& shared) {
  own = sum_of_warp(own);
  __syncthreads();  // the sums before have been read
  if (threadIdx.x % 32 == 0) shared.sum_of_warp[threadIdx.x / 32] = own;
  __syncthreads();  // the sums of all warps stand
  Count sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared.sum_of_warp[w];
  return sum;
}

// bins[bin] += amount for every lane with a bin (-1: none), one addition a distinct bin of the warp: near the top of a
// row nearly all lanes have the same.
__device__ __forceinline__ void add_to_bins(Count* bins, int bin, Count amount) {
  unsigned left = __ballot_sync(kAllLanes, bin >= 0);
  while (left != 0) {
    const int leader = __ffs(static_cast<int>(left)) - 1;
    const int chosen = __shfl_sync(kAllLanes, bin, leader);
    const Count sum = sum_of_warp(bin == chosen ? amount : 0);
    if (static_cast<int>(threadIdx.x) % 32 == leader) atomicAdd(bins + chosen, sum);
    left &= ~__ballot_sync(kAllLanes, bin == chosen);
  }
}

// Thread 0: the bin in which what lies above and in it reaches the target.
__device__ __forceinline__ void choose_bin(Shared& shared, double target, double unit) {
  Count above = shared.above;
  shared.bin = -1;
  for (int b = kBins - 1; b >= 0; --b) {
    if (shared.bins[b] == 0) continue;
    if (static_cast<double>(above + shared.bins[b]) * unit >= target) {
      shared.bin = b;
      break;
    }
    above += shared.bins[b];
  }
  shared.above = above;
}

// The rank of the last id of the shortest run of first ranks that holds `target`, counted in ids or in weights; the
// cut as it is where all do not hold it.
__device__ __forceinline__ uint64_t find_cut(const Row& row, bool by_weight, double target, Shared& shared) {
  uint64_t prefix = 0, mask = 0;
  if (threadIdx.x == 0) shared.above = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    __syncthreads();  // the bins before have been read
    if (threadIdx.x < kBins) shared.bins[threadIdx.x] = 0;
    __syncthreads();  // the bins are empty
    for (int64_t first = 0; first < row.vocab; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      int bin = -1;
      Count amount = 0;
      if (i < row.vocab) {
        const uint64_t rank = row.rank(i);
        if ((rank & mask) == prefix && rank >= row.cut) {
          const Count steps = row.steps(i);
          amount = by_weight ? steps : 1;
          if (steps > 0) bin = static_cast<int>(rank >> shift & 255);
        }
      }
      add_to_bins(shared.bins, bin, amount);
    }
    __syncthreads();  // the bins are full
    if (threadIdx.x == 0) choose_bin(shared, target, by_weight ? numerics::kWeightGrid : 1.0);
    __syncthreads();  // the bin is chosen
    if (shared.bin < 0) return row.cut;
    prefix |= static_cast<uint64_t>(shared.bin) << shift;
    mask |= uint64_t{255} << shift;
  }
  return prefix;
}

__device__ __forceinline__ Count kept_steps(const Row& row, int64_t i) {
  if (row.rank(i) < row.cut) return 0;
  const Count steps = row.steps(i);
  return row.min_p > 0 && as_weight(steps) < row.min_p ? 0 : steps;
}

// The first kept id, ascending, at which the running sum of weights exceeds `uniform` of the whole; the last one where
// rounding left none. Each thread has a run of neighbouring ids.
__device__ __forceinline__ int draw_id(const Row& row, double uniform, Shared& shared) {
  const int64_t length = (row.vocab + kThreads - 1) / kThreads;
  const int64_t begin = threadIdx.x * length;
  const int64_t end = begin + length < row.vocab ? begin + length : row.vocab;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Count own = 0;
  int last = -1;
  for (int64_t i = begin; i < end; ++i) {
    const Count steps = kept_steps(row, i);
    own += steps;
    if (steps > 0) last = static_cast<int>(i);
  }
  const Count whole = sum_of_block(own, shared);  // leaves the sums of the warps behind
  Count before = own;
  for (int d = 1; d < 32; d *= 2) {
    const Count lower = __shfl_up_sync(kAllLanes, before, d);
    if (lane >= d) before += lower;
  }
  before -= own;
  for (int w = 0; w < warp; ++w) before += shared.sum_of_warp[w];
  if (threadIdx.x == 0) shared.last = shared.drawn = -1;
  __syncthreads();  // both are empty
  if (last >= 0) atomicMax(&shared.last, last);
  const double target = uniform * as_weight(whole);
  if (as_weight(before) <= target && as_weight(before + own) > target) {
    Count running = before;
    for (int64_t i = begin; i < end; ++i) {
      running += kept_steps(row, i);
      if (as_weight(running) > target) {
        shared.drawn = static_cast<int>(i);
        break;
      }
    }
  }
  __syncthreads();  // the id stands
  return shared.drawn >= 0 ? shared.drawn : shared.last;
}

__global__ void __launch_bounds__(kThreads) draw_kernel(DeviceSample p) {
  __shared__ Shared shared;
  const int64_t r = blockIdx.x;
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const SampleRule rule = p.rules[r];
  Row row{p.logits + r * p.pitch, p.vocab_size, 0.0f, rule.temperature, rule.min_p, 0};
  Best own = {0, 0};
  for (int64_t i = threadIdx.x; i < p.vocab_size; i += kThreads) own = better(own, best_at(row.logits, i));
  const Best best = best_of_block<kWarps>(own, shared.best_of_warp);
  int32_t token = -1;
  if (has_token(best)) {
    token = id_of(best);
    row.top = score_of_key(static_cast<uint32_t>(best.key >> 32));
    if (rule.temperature > 0) {
      if (rule.top_k > 0) row.cut = find_cut(row, false, rule.top_k, shared);
      if (rule.top_p < 1) {
        Count all = 0;
        for (int64_t i = threadIdx.x; i < p.vocab_size; i += kThreads) {
          if (row.rank(i) >= row.cut) all += row.steps(i);
        }
        const double whole = as_weight(sum_of_block(all, shared));
        row.cut = find_cut(row, true, static_cast<double>(rule.top_p) * whole, shared);
      }
      token = draw_id(row, numerics::uniform_draw(rule.seed, rule.index), shared);
    }
  }
  if (threadIdx.x != 0) return;
  p.token[r] = token;
  if (p.token_at != nullptr && p.slot[r] >= 0) p.token_at[p.slot[r]] = token;
  if (token < 0 && p.status != nullptr) atomicOr(p.status, kStatusBadLogits);
}

}  // namespace

void sample(const DeviceSample& p, device::Stream stream) {
  QD_CHECK(p.num_rows >= 0 && p.num_rows <= INT32_MAX, "rows of logits");
  QD_CHECK(p.vocab_size >= 1 && p.vocab_size <= kMostDrawnIds && p.pitch >= p.vocab_size,
           "a row of at most 524288 logits");
  QD_CHECK(p.token_at == nullptr || p.slot != nullptr, "slots of the tokens");
  if (p.num_rows == 0) return;
  launch_chained(draw_kernel, dim3(static_cast<unsigned>(p.num_rows)), dim3(kThreads), 0, native(stream), p);
  check_launch("sample");
}

}  // namespace quadrille::kernels::cuda
