// SPDX-License-Identifier: Apache-2.0
// The reductions over ranks of all host bodies: parts in rank order, element by element (numerics/rank_order.h), and
// how a vector is cut into one slice a rank.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

namespace quadrille::parallel {

// out[i] = reduction over r of float (first + i) of parts[r], i < count. `out` may not overlap a part. A part may lie
// at any address.
void sum_in_rank_order(std::span<const std::byte* const> parts, size_t first, size_t count, float* out);
void max_in_rank_order(std::span<const std::byte* const> parts, size_t first, size_t count, float* out);

// offsets [ranks + 1]: slices that differ by at most one line of 16 floats, the longer ones first.
std::vector<size_t> even_slices(size_t count, int ranks);

}  // namespace quadrille::parallel
