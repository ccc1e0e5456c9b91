// SPDX-License-Identifier: Apache-2.0
#include "parallel/ordered_reduce.h"

#include <algorithm>
#include <cstring>

#include "numerics/rank_order.h"

namespace quadrille::parallel {
namespace {

constexpr size_t kBlock = 512;  // floats: two blocks stay in L1, and the copy into an aligned block costs little
constexpr size_t kLine = 16;    // floats of a cache line

template <typename Step>
void reduce_in_rank_order(std::span<const std::byte* const> parts, size_t first, size_t count, float* out, Step step) {
  float sum[kBlock];
  float next[kBlock];
  for (size_t done = 0; done < count; done += kBlock) {
    const size_t n = std::min(kBlock, count - done);
    const size_t offset = (first + done) * sizeof(float);
    std::memcpy(sum, parts[0] + offset, n * sizeof(float));
    for (size_t r = 1; r < parts.size(); ++r) {
      std::memcpy(next, parts[r] + offset, n * sizeof(float));
      for (size_t i = 0; i < n; ++i) sum[i] = step(sum[i], next[i]);
    }
    for (size_t i = 0; i < n; ++i) sum[i] = numerics::canonical(sum[i]);
    std::memcpy(out + done, sum, n * sizeof(float));
  }
}

}  // namespace

void sum_in_rank_order(std::span<const std::byte* const> parts, size_t first, size_t count, float* out) {
  reduce_in_rank_order(parts, first, count, out, [](float a, float b) { return numerics::add_rank(a, b); });
}

void max_in_rank_order(std::span<const std::byte* const> parts, size_t first, size_t count, float* out) {
  reduce_in_rank_order(parts, first, count, out, [](float a, float b) { return numerics::max_rank(a, b); });
}

std::vector<size_t> even_slices(size_t count, int ranks) {
  const auto n = static_cast<size_t>(ranks);
  const size_t lines = (count + kLine - 1) / kLine;
  std::vector<size_t> offset(n + 1);
  for (size_t r = 0; r <= n; ++r) {
    const size_t first_line = r * (lines / n) + std::min(r, lines % n);
    offset[r] = std::min(count, first_line * kLine);
  }
  return offset;
}

}  // namespace quadrille::parallel
