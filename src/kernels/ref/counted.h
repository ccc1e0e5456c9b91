// SPDX-License-Identifier: Apache-2.0
// How a reference table counts its calls, and how its functions split their work over the pool.
#pragma once

#include <atomic>
#include <cstdint>

#include "kernels/api/table.h"

namespace quadrille::kernels::ref {

// A table entry that counts itself and calls Function.
template <auto Function, std::atomic<uint64_t>& Calls, typename Problem>
void counted(const Problem& problem, const KernelContext& context) {
  Calls.fetch_add(1, std::memory_order_relaxed);
  Function(problem, context);
}

// body(part) for part = 0..parts-1, over the pool where there is one.
template <typename Body>
void for_parts(const KernelContext& context, int64_t parts, Body&& body) {
  if (context.pool != nullptr && parts > 1) {
    context.pool->run(parts, body);
    return;
  }
  for (int64_t part = 0; part < parts; ++part) body(part);
}

// body(row) for row = 0..rows-1, at most 64 rows a part.
template <typename Body>
void for_rows(const KernelContext& context, int64_t rows, Body&& body) {
  constexpr int64_t kRowsPerPart = 64;
  for_parts(context, (rows + kRowsPerPart - 1) / kRowsPerPart, [&](int64_t part) {
    const int64_t end = rows < (part + 1) * kRowsPerPart ? rows : (part + 1) * kRowsPerPart;
    for (int64_t row = part * kRowsPerPart; row < end; ++row) body(row);
  });
}

// The input row that a slot reads.
inline int64_t input_row(const GroupedRows& rows, int64_t slot) {
  return rows.source_row == nullptr ? slot : rows.source_row[slot];
}

}  // namespace quadrille::kernels::ref
