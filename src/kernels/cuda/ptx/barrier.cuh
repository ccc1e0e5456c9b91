// SPDX-License-Identifier: Apache-2.0
// mbarriers in shared memory: the hand-over between copy engine, producer and consumers of a ring of stages.
#pragma once

#include <cstdint>

namespace quadrille::kernels::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine; once, between barrier_init and the first use.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival that also announces `bytes` of copies to come.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The same barrier of CTA `rank` of the cluster. Without a release at cluster scope, which was measured to cost a
// thousand clocks: what is handed over are reads that have been waited for.
__device__ __forceinline__ void barrier_arrive_in(uint32_t barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// All threads of the cluster.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}

// Returns when the phase with that parity has completed. The hardware suspends the thread while it waits.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni passed;\n"
      "bra.uni again;\n"
      "passed:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The same where data came from other CTAs of the cluster: what they stored before the phase completed is seen.
__device__ __forceinline__ void barrier_wait_cluster(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni passed;\n"
      "bra.uni again;\n"
      "passed:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// All threads of the cluster meet, and nothing more: no store is made visible by it.
__device__ __forceinline__ void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed;\nbarrier.cluster.wait;" ::: "memory");
}

// Number of this CTA in its cluster, and the address of its shared memory `address` in CTA `rank` of the cluster.
__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ __forceinline__ uint32_t address_in(uint32_t address, int rank) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

// A barrier of `Threads` threads (whole warps) by number: those of one warpgroup, others go on.
template <int Number, int Threads>
__device__ __forceinline__ void named_barrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(Number), "n"(Threads) : "memory");
}

// The same of 128 threads, where the number is known at run time.
__device__ __forceinline__ void warpgroup_barrier(int number) {
  asm volatile("bar.sync %0, 128;" ::"r"(number) : "memory");
}

}  // namespace quadrille::kernels::cuda::ptx
