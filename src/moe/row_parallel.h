// SPDX-License-Identifier: Apache-2.0
// Row-parallel layers of tensor-parallel ranks (docs/numerics.md section 6): one scale for a row that is split over
// ranks, partial products in fp32, their sum in rank order, one rounding. Called by layer.h and by the decoder for
// o_proj. With one rank every function does what a plain layer does.
#pragma once

#include <cstdint>

#include "core/result.h"
#include "moe/layer_observer.h"
#include "moe/linear.h"

namespace quadrille::moe {

// The input of a row-parallel layer as this rank has it: `held` columns of each row. In the rank's matrix they begin
// at column `offset`; the columns before and behind them, up to its K, are zeros (layout::KShard).
struct SplitRows {
  const float* x = nullptr;  // [num_rows, held]
  int64_t num_rows = 0;
  int64_t held = 0;
  int64_t offset = 0;
};

// The input in the form that `linear` reads; x must stay. For W4A8 layers of several ranks it is quantised here, into
// the scratch of `execution`: the scale of a row is that of its absmax over all ranks (SplitScale::kAgreed), so codes
// and scales are those of one rank; `linear`'s K may be wider than `held`. A collective where the rows are not zero:
// every rank calls it with the same num_rows. Errors: those of the communicator.
Result<LinearInput> row_parallel_input(const Linear& linear, const SplitRows& rows, const Execution& execution);

// The part of `linear` that this rank computes: its bias belongs to rank 0 alone.
Linear row_parallel_part(const Linear& linear, const Execution& execution);

// x [count] = the sum over ranks in rank order, then rounded as the execution says. A collective, but for count 0.
// One rank: nothing.
Status sum_over_ranks(const Execution& execution, float* x, int64_t count);

// out [num_rows, n] = linear(rows), complete and rounded on every rank. For one rank: apply_linear(). The observer sees
// what the product reads: a and a_scale (W4A8; a has the linear's K), or x.
Status apply_row_parallel(const Linear& linear, const SplitRows& rows, const Execution& execution, float* out,
                          LayerObserver* observer = nullptr);

}  // namespace quadrille::moe
