// SPDX-License-Identifier: Apache-2.0
// A kernel and its predecessor in the stream (launch_chained in launch.h). The rule of every chained kernel:
//   1. each thread that touches global memory, and at least one of every CTA, calls wait_for_predecessor() first; no
//      CTA returns before. So the end of a kernel implies the end of all kernels before it.
//   2. let_successor_start() comes behind that wait. So whoever runs here may read, before its own wait, what the
//      kernels before its direct predecessor wrote: weights, tables and lists that are older than one kernel.
//   3. Before its wait a kernel writes no global memory.
//   4. What kernels of the step write is never read by __ldg (ld.global.nc): the compiler may move such a load to
//      before the wait, and the read-only path promises nothing about data that change while the kernel is there.
//      Plain loads or __ldcg; __ldg for weights and tables.
//   5. All ask for the same split of L1 and shared memory (launch.h): a multiprocessor changes it only when empty,
//      so that a kernel with another one starts when the CTAs of its predecessor have left, and nothing overlaps.
// A kernel that is launched as usual keeps the rule by itself.
#pragma once

namespace quadrille::kernels::cuda::ptx {

// Returns when all memory operations of the predecessor are visible; at once in a kernel that is launched as usual.
__device__ __forceinline__ void wait_for_predecessor() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The successor's CTAs may take the room that is free once every CTA has said so or ended.
__device__ __forceinline__ void let_successor_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace quadrille::kernels::cuda::ptx
