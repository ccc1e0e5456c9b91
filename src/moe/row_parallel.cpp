// SPDX-License-Identifier: Apache-2.0
// The agreed scale is brought to the table's own quantisation as one more column that holds the absmax of all ranks.
#include "moe/row_parallel.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "core/check.h"
#include "numerics/act_quant.h"
#include "parallel/communicator.h"

namespace quadrille::moe {
namespace {

// The added column and the zeros behind it: rows of the widened matrix begin at whole vectors.
constexpr int64_t kAddedColumns = 16;

void row_absmax(const SplitRows& rows, const Execution& execution, float* absmax) {
  execution.kernels.pool->run(rows.num_rows, [&](int64_t r) {
    const float* x = rows.x + r * rows.held;
    float most = 0.0f;
    for (int64_t i = 0; i < rows.held; ++i) most = numerics::absmax_step(most, x[i]);
    absmax[r] = most;
  });
}

// [num_rows, k + kAddedColumns]: zeros, what the rank holds, zeros, the absmax.
const float* widened(const SplitRows& rows, int64_t k, const float* absmax, const Execution& execution) {
  const int64_t width = k + kAddedColumns;
  float* wide = execution.kernels.scratch->take<float>(rows.num_rows * width);
  execution.kernels.pool->run(rows.num_rows, [&](int64_t r) {
    float* row = wide + r * width;
    std::fill_n(row, width, 0.0f);
    std::copy_n(rows.x + r * rows.held, rows.held, row + rows.offset);
    row[k] = absmax[r];
  });
  return wide;
}

Result<LinearInput> quantised_input(const SplitRows& rows, int64_t k, const Execution& execution) {
  Arena* scratch = execution.kernels.scratch;
  uint8_t* act = scratch->take<uint8_t>(rows.num_rows * k);
  float* act_scale = scratch->take<float>(rows.num_rows);
  const LinearInput input(act, act_scale, rows.num_rows, k);
  if (rows.num_rows == 0) return input;
  float* absmax = scratch->take<float>(rows.num_rows);
  row_absmax(rows, execution, absmax);
  if (execution.split_scale == SplitScale::kAgreed) {
    QD_TRY_STATUS(execution.ranks->all_reduce_max({absmax, static_cast<size_t>(rows.num_rows)}));
  }
  const float* wide = widened(rows, k, absmax, execution);
  const int64_t width = k + kAddedColumns;
  uint8_t* wide_act = scratch->take<uint8_t>(rows.num_rows * width);
  execution.table->quantize_rows({rows.num_rows, width, wide, wide_act, act_scale}, execution.kernels);
  execution.kernels.pool->run(
      rows.num_rows, [&](int64_t r) { std::memcpy(act + r * k, wide_act + r * width, static_cast<size_t>(k)); });
  return input;
}

void show_input(const LinearInput& input, LayerObserver* observer) {
  const int64_t rows = input.num_rows();
  if (input.act() == nullptr) return observer->stage({"x", StageType::kF32, {rows, input.k()}, input.x()});
  observer->stage({"a", StageType::kE4M3, {rows, input.k()}, input.act()});
  observer->stage({"a_scale", StageType::kF32, {rows, 1}, input.act_scale()});
}

}  // namespace

bool Execution::is_split() const {
  return ranks != nullptr && ranks->size() > 1;
}

bool Execution::is_spread() const {
  return expert_ranks != nullptr && expert_ranks->size() > 1;
}

Result<LinearInput> row_parallel_input(const Linear& linear, const SplitRows& rows, const Execution& execution) {
  if (!execution.is_split() || !is_w4a8(linear)) return LinearInput(rows.x, rows.num_rows, rows.held);
  const int64_t k = linear_k(linear);
  QD_CHECK(rows.offset >= 0 && rows.offset + rows.held <= k, "a rank's columns lie inside its matrix");
  return quantised_input(rows, k, execution);
}

Linear row_parallel_part(const Linear& linear, const Execution& execution) {
  Linear part = linear;
  if (execution.is_split() && execution.ranks->rank() != 0) {
    std::visit([](auto& l) { l.bias = nullptr; }, part);
  }
  return part;
}

Status sum_over_ranks(const Execution& execution, float* x, int64_t count) {
  if (!execution.is_split() || count == 0) return {};
  QD_TRY_STATUS(execution.ranks->all_reduce_sum({x, static_cast<size_t>(count)}));
  round_values(execution, x, count);
  return {};
}

Status apply_row_parallel(const Linear& linear, const SplitRows& rows, const Execution& execution, float* out,
                          LayerObserver* observer) {
  QD_TRY(LinearInput input, row_parallel_input(linear, rows, execution));
  const int64_t offsets[2] = {0, rows.num_rows};
  const auto rounding = execution.is_split() ? OutputRounding::kNone : OutputRounding::kAsExecution;
  apply_linear(row_parallel_part(linear, execution), &input, {1, offsets, nullptr}, rounding, execution, out);
  if (observer != nullptr) show_input(input, observer);
  return sum_over_ranks(execution, out, rows.num_rows * linear_n(linear));
}

}  // namespace quadrille::moe
