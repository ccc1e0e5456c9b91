// SPDX-License-Identifier: Apache-2.0
// The greedy choice: a cluster of eight CTAs a row, so that one row does not wait for one multiprocessor. The best is
// one 64-bit maximum (order of logits, then the lower id); the log-probability a sum in double in one fixed order.
#include <cooperative_groups.h>

#include "core/check.h"
#include "kernels/cuda/decoder_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/sample/best.cuh"
#include "numerics/double_math.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kCluster = 8;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
struct Shared {
  Best best;
  double sum;
  Best best_of_warp[kWarps];
  double sum_of_warp[kWarps];
};

// The sum of all threads, in thread 0.
__device__ __forceinline__ double sum_of_block(double own, Shared& shared) {
  for (int d = 16; d > 0; d /= 2) own = own + __shfl_xor_sync(kAllLanes, own, d);
  if (threadIdx.x % 32 == 0) shared.sum_of_warp[threadIdx.x / 32] = own;
  __syncthreads();  // the sums of all warps stand
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum = sum + shared.sum_of_warp[w];
  return sum;
}

__device__ __forceinline__ void write_token(const DeviceGreedy& p, int64_t row, const Best& best) {
  const int32_t token = has_token(best) ? id_of(best) : -1;
  p.token[row] = token;
  if (p.token_at != nullptr && p.slot[row] >= 0) p.token_at[p.slot[row]] = token;
  if (token < 0 && p.status != nullptr) atomicOr(p.status, kStatusBadLogits);
}

// The best of the thread's logits. Each thread's ids ascend, so a tie stays with the lower one.
struct ThreadBest {
  float logit = -__builtin_inff();
  int32_t id = -1;
  uint32_t bad = 0;

  __device__ __forceinline__ void look(float x, int32_t at) {
    if (!(x < __builtin_inff())) bad = 1;
    if (x > logit) {
      logit = x;
      id = at;
    }
  }
  __device__ __forceinline__ Best best() const { return {id < 0 ? 0 : greedy_key(logit, id), bad}; }
};

// Every kStride-th logit from `first` on; vectors of four where rows lie on 16 bytes.
template <int64_t kStride>
__device__ __forceinline__ Best best_of_thread(const float* logits, int64_t first, int64_t vocab_size) {
  ThreadBest best;
  int64_t done = 0;
  if (reinterpret_cast<uintptr_t>(logits) % sizeof(float4) == 0) {
    done = vocab_size / 4 * 4;
    const float4* vectors = reinterpret_cast<const float4*>(logits);
#pragma unroll 4
    for (int64_t i = first; i < done / 4; i += kStride) {
      const float4 x = vectors[i];
      const auto id = static_cast<int32_t>(4 * i);
      best.look(x.x, id);
      best.look(x.y, id + 1);
      best.look(x.z, id + 2);
      best.look(x.w, id + 3);
    }
  }
#pragma unroll 4
  for (int64_t i = done + first; i < vocab_size; i += kStride) best.look(logits[i], static_cast<int32_t>(i));
  return best.best();
}

__global__ void __cluster_dims__(kCluster, 1, 1) __launch_bounds__(kThreads)
    greedy_kernel(const __grid_constant__ DeviceGreedy p) {
  __shared__ Shared shared;
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  const auto cluster = cooperative_groups::this_cluster();
  const int64_t row = blockIdx.x / kCluster;
  const float* logits = p.logits + row * p.pitch;
  const int64_t first = static_cast<int64_t>(cluster.block_rank()) * kThreads + threadIdx.x;
  constexpr int64_t kStride = kCluster * kThreads;
  Best own = best_of_thread<kStride>(logits, first, p.vocab_size);
  own = best_of_block<kWarps>(own, shared.best_of_warp);
  if (threadIdx.x == 0) shared.best = own;
  cluster.sync();  // the bests of all CTAs stand
  Best best = {0, 0};
  for (int r = 0; r < kCluster; ++r) best = better(best, *cluster.map_shared_rank(&shared.best, r));
  const bool has = has_token(best);
  if (cluster.block_rank() == 0 && threadIdx.x == 0) write_token(p, row, best);
  if (p.logprob != nullptr) {
    const double top = score_of_key(static_cast<uint32_t>(best.key >> 32));
    double sum = 0;
    if (has) {
#pragma unroll 2
      for (int64_t i = first; i < p.vocab_size; i += kStride) {
        sum = sum + numerics::reproducible_exp(static_cast<double>(logits[i]) - top);
      }
    }
    sum = sum_of_block(sum, shared);
    if (threadIdx.x == 0) shared.sum = sum;
    cluster.sync();  // the sums of all CTAs stand
    if (cluster.block_rank() == 0 && threadIdx.x == 0) {
      double whole = 0;
      for (int r = 0; r < kCluster; ++r) whole = whole + *cluster.map_shared_rank(&shared.sum, r);
      // (largest logit - itself) - ln(sum).
      p.logprob[row] = has ? static_cast<float>(0.0 - numerics::reproducible_log(whole))
                           : numerics::float_of(numerics::kCanonicalNanF32);
    }
  }
  cluster.sync();  // nobody leaves while its shared memory is read
}

}  // namespace

void greedy(const DeviceGreedy& p, device::Stream stream) {
  QD_CHECK(p.num_rows >= 0 && p.num_rows < (int64_t{1} << 27), "rows of logits");
  QD_CHECK(p.vocab_size >= 1 && p.vocab_size <= INT32_MAX && p.pitch >= p.vocab_size, "a row of logits");
  QD_CHECK(p.token_at == nullptr || p.slot != nullptr, "slots of the tokens");
  if (p.num_rows == 0) return;
  launch_chained(greedy_kernel, static_cast<unsigned>(p.num_rows * kCluster), kThreads, 0, native(stream), p);
  check_launch("greedy");
}

}  // namespace quadrille::kernels::cuda
