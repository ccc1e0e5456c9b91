// SPDX-License-Identifier: Apache-2.0
// One-shot reduction over peer memory: a thread stores its two floats, each with the epoch beside it, into every peer's
// inbox, waits for the peers' words in its own, and reduces them in rank order. No fence, no flag, no barrier between
// blocks; one_shot_logic.h says why two halves of an inbox suffice. Also the barrier between GPUs.
#include "core/check.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ranks/one_shot_logic.h"
#include "kernels/cuda/ranks/peer_kernels.h"
#include "kernels/cuda/ranks/peer_wait.cuh"

namespace quadrille::kernels::cuda {
namespace {

struct Sum {
  __device__ __forceinline__ static float step(float a, float b) { return numerics::add_rank(a, b); }
};
struct Max {
  __device__ __forceinline__ static float step(float a, float b) { return numerics::max_rank(a, b); }
};

constexpr int kLargestBatch = 8;  // ranks whose words are loaded together

struct Floats {
  float low = 0.0f, high = 0.0f;
};

// Zeros behind the data.
__device__ __forceinline__ Floats load_own(const OneShotReduce& p, int64_t first, bool by_two) {
  if (by_two && first + 1 < p.count) {
    const float2 both = *reinterpret_cast<const float2*>(p.data + first);
    return {both.x, both.y};
  }
  Floats own;
  if (first < p.count) own.low = p.data[first];
  if (first + 1 < p.count) own.high = p.data[first + 1];
  return own;
}
__device__ __forceinline__ void store_own(const OneShotReduce& p, int64_t first, bool by_two, Floats out) {
  if (by_two && first + 1 < p.count) {
    *reinterpret_cast<float2*>(p.data + first) = make_float2(out.low, out.high);
    return;
  }
  if (first < p.count) p.data[first] = out.low;
  if (first + 1 < p.count) p.data[first + 1] = out.high;
}

// The words of ranks [begin, begin + kBatch), all loads in flight together; false when the wait was given up.
template <int kBatch>
__device__ __forceinline__ bool receive(const OneShotReduce& p, uint32_t epoch, int begin, Floats own,
                                        PeerPatience& patience, Floats (&parts)[kBatch]) {
  const uint64_t* inbox = p.inbox[p.rank];
  while (true) {
    WordPair words[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int r = begin + j;
      if (r >= p.num_ranks || r == p.rank) continue;
      words[j] = load_words(inbox + word_place(epoch, p.num_ranks, r, blockIdx.x, static_cast<int>(threadIdx.x)));
    }
    int missing = -1;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int r = begin + j;
      if (r >= p.num_ranks) continue;
      if (r == p.rank) {
        parts[j] = own;
        continue;
      }
      if (!is_of(words[j].low, epoch) || !is_of(words[j].high, epoch)) missing = r;
      parts[j] = {value_of(words[j].low), value_of(words[j].high)};
    }
    if (missing < 0) return true;
    if (patience.ends(missing)) return false;
  }
}

// Two blocks a multiprocessor: without the number the compiler aims at 32 registers and spills.
template <typename Reduction, int kBatch>
__global__ void __launch_bounds__(kOneShotThreads, 2)
    one_shot_kernel(const __grid_constant__ OneShotReduce p, bool by_two) {
  const int64_t chunk = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = chunk * kOneShotChunk + 2 * thread;
  const uint32_t epoch = next_epoch(p.epochs[chunk]);
  const Floats own = load_own(p, first, by_two);
  const WordPair words = {word_of(own.low, epoch), word_of(own.high, epoch)};
  const int64_t place = word_place(epoch, p.num_ranks, p.rank, chunk, thread);
  // Each rank begins with another peer, so that they do not all send to one.
  for (int j = 1; j < p.num_ranks; ++j) {
    const int ahead = p.rank + j;
    store_words(p.inbox[ahead < p.num_ranks ? ahead : ahead - p.num_ranks] + place, words);
  }
  PeerPatience patience(p.wait);
  Floats sum;
  bool complete = true;
  const int end = kBatch < kLargestBatch ? kBatch : p.num_ranks;  // smaller batches hold all ranks
  for (int begin = 0; begin < end && complete; begin += kBatch) {
    Floats parts[kBatch];
    complete = receive<kBatch>(p, epoch, begin, own, patience, parts);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (begin + j >= p.num_ranks) continue;
      const bool starts = begin + j == 0;
      sum.low = starts ? parts[j].low : Reduction::step(sum.low, parts[j].low);
      sum.high = starts ? parts[j].high : Reduction::step(sum.high, parts[j].high);
    }
  }
  if (complete) store_own(p, first, by_two, {numerics::canonical(sum.low), numerics::canonical(sum.high)});
  __syncthreads();  // all threads have read the epoch
  if (thread == 0) p.epochs[chunk] = epoch;
}

template <typename Reduction>
auto kernel_for(int num_ranks) {
  return num_ranks <= 2   ? one_shot_kernel<Reduction, 2>
         : num_ranks <= 4 ? one_shot_kernel<Reduction, 4>
                          : one_shot_kernel<Reduction, kLargestBatch>;
}

__global__ void __launch_bounds__(kMaxPeers) barrier_kernel(const __grid_constant__ PeerBarrier p) {
  const int peer = static_cast<int>(threadIdx.x);
  const uint32_t epoch = next_epoch(*p.epoch);
  if (peer < p.num_ranks) {
    // Kernels in front of this one on the stream come before the release; it counts for what they wrote, too.
    store_release(p.flags[peer] + p.rank, epoch);
    PeerPatience patience(p.wait);
    while (!has_come(load_acquire(p.flags[p.rank] + peer), epoch)) {
      if (patience.ends(peer)) break;
    }
  }
  __syncthreads();  // all threads have read the epoch
  if (threadIdx.x == 0) *p.epoch = epoch;
}

}  // namespace

void one_shot_reduce(const OneShotReduce& p, device::Stream stream) {
  QD_CHECK(p.num_ranks >= 2 && p.num_ranks <= kMaxPeers && p.rank >= 0 && p.rank < p.num_ranks, "ranks of a host");
  QD_CHECK(p.count >= 1 && p.count <= kOneShotFloats, "floats of one shot");
  const bool by_two = reinterpret_cast<uintptr_t>(p.data) % sizeof(float2) == 0;
  const auto blocks = static_cast<unsigned>(chunks_of(p.count));
  if (p.takes_max) {
    kernel_for<Max>(p.num_ranks)<<<blocks, kOneShotThreads, 0, native(stream)>>>(p, by_two);
  } else {
    kernel_for<Sum>(p.num_ranks)<<<blocks, kOneShotThreads, 0, native(stream)>>>(p, by_two);
  }
  check_launch("one_shot_reduce");
}

void peer_barrier(const PeerBarrier& p, device::Stream stream) {
  QD_CHECK(p.num_ranks >= 1 && p.num_ranks <= kMaxPeers && p.rank >= 0 && p.rank < p.num_ranks, "ranks of a host");
  barrier_kernel<<<1, kMaxPeers, 0, native(stream)>>>(p);
  check_launch("peer_barrier");
}

std::vector<const void*> one_shot_kernels() {
  std::vector<const void*> kernels = {reinterpret_cast<const void*>(barrier_kernel)};
  for (const int num_ranks : {2, 4, 8}) {
    kernels.push_back(reinterpret_cast<const void*>(kernel_for<Sum>(num_ranks)));
    kernels.push_back(reinterpret_cast<const void*>(kernel_for<Max>(num_ranks)));
  }
  return kernels;
}

}  // namespace quadrille::kernels::cuda
