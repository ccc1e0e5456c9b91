// SPDX-License-Identifier: Apache-2.0
// How the driver cuts work into parts: balanced by cost, and not at all below the cost of waking the pool.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "kernels/api/table.h"

namespace quadrille::kernels::cpu {

// Costs are counted in vector operations of 16 fp32 lanes, about a fifth of a nanosecond each.
// A part is worth at least this (6 us): a worker that is woken costs 1 us out of its spin loop and tens of us where it
// was parked, and run() waits for every worker it woke.
inline constexpr int64_t kCostOfOnePart = 30000;
// A thread owns as many neighbouring parts, the same ones in every call of a shape: one stream of bytes. One that was
// held up leaves the rest of them to the others (core/thread_pool.h).
inline constexpr int64_t kPartsPerThread = 4;

// Parts for work of that cost: 1 where waking the pool does not pay, else up to kPartsPerThread a thread.
inline int64_t parts_for(const KernelContext& context, int64_t cost) {
  if (context.pool == nullptr || context.pool->num_threads() == 1) return 1;
  const int64_t most = context.pool->num_threads() * kPartsPerThread;
  const int64_t wanted = cost / kCostOfOnePart;
  return wanted < 2 ? 1 : (wanted < most ? wanted : most);
}

// body(part) on the pool, or here where there is one part.
template <typename Body>
void run_parts(const KernelContext& context, int64_t parts, Body&& body) {
  if (parts > 1) {
    context.pool->run(parts, body);
  } else {
    body(int64_t{0});
  }
}

// body(begin, end) over [0, count), cut by the cost of one item.
template <typename Body>
void run_ranges(const KernelContext& context, int64_t count, int64_t cost_of_item, Body&& body) {
  if (count <= 0) return;
  int64_t parts = parts_for(context, count * cost_of_item);
  if (parts > count) parts = count;
  run_parts(context, parts, [&](int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

}  // namespace quadrille::kernels::cpu
