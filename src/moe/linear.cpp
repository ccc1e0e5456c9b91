// SPDX-License-Identifier: Apache-2.0
// Turns a tagged linear layer into a problem of the kernel table.
#include "moe/linear.h"

#include <algorithm>

#include "core/check.h"
#include "numerics/bf16.h"

namespace quadrille::moe {
namespace {

void apply(const W4Linear& linear, LinearInput* input, const kernels::GroupedRows& rows, OutputRounding rounding,
           const Execution& execution, float* out) {
  input->quantise(execution);
  kernels::W4A8Gemm problem;
  problem.numerics = execution.numerics;
  problem.n = linear.n;
  problem.k = linear.k;
  problem.group_size = linear.group_size;
  problem.rows = rows;
  problem.weights = linear.matrices;
  problem.act = input->act();
  problem.act_scale = input->act_scale();
  problem.bias = linear.bias;
  problem.out = out;
  execution.table->w4a8_gemm(problem, execution.kernels);
  if (rounding == OutputRounding::kAsExecution) round_values(execution, out, rows.offsets[rows.num_experts] * linear.n);
}

void apply(const Bf16Linear& linear, LinearInput* input, const kernels::GroupedRows& rows, OutputRounding rounding,
           const Execution& execution, float* out) {
  kernels::Bf16Gemm problem;
  problem.rounding = rounding == OutputRounding::kAsExecution ? execution.rounding : kernels::Rounding::kF32;
  problem.n = linear.n;
  problem.k = linear.k;
  problem.rows = rows;
  problem.weights = linear.matrices;
  problem.x = input->x();
  problem.bias = linear.bias;
  problem.out = out;
  execution.table->bf16_gemm(problem, execution.kernels);
}

}  // namespace

void LinearInput::quantise(const Execution& execution) {
  if (act_ != nullptr) return;
  uint8_t* act = execution.kernels.scratch->take<uint8_t>(num_rows_ * k_);
  float* act_scale = execution.kernels.scratch->take<float>(num_rows_);
  act_ = act;
  act_scale_ = act_scale;
  if (num_rows_ == 0) return;
  execution.table->quantize_rows({num_rows_, k_, x_, act, act_scale}, execution.kernels);
}

void apply_linear(const Linear& linear, LinearInput* input, const kernels::GroupedRows& rows, OutputRounding rounding,
                  const Execution& execution, float* out) {
  QD_CHECK(linear_k(linear) == input->k(), "the input's width must be the layer's K");
  if (rows.offsets[rows.num_experts] == 0) return;
  std::visit([&](const auto& l) { apply(l, input, rows, rounding, execution, out); }, linear);
}

void apply_linear(const Linear& linear, LinearInput* input, const Execution& execution, float* out) {
  const int64_t offsets[2] = {0, input->num_rows()};
  apply_linear(linear, input, {1, offsets, nullptr}, OutputRounding::kAsExecution, execution, out);
}

void apply_activation(const kernels::ActivationRule& rule, const float* gate_up, int64_t num_rows, int64_t width,
                      const Execution& execution, float* out) {
  if (num_rows == 0) return;
  kernels::GatedActivation problem;
  problem.activation = rule;
  problem.numerics = execution.numerics;
  problem.rounding = execution.rounding;
  problem.num_rows = num_rows;
  problem.width = width;
  problem.gate_up = gate_up;
  problem.out = out;
  execution.table->gated_activation(problem, execution.kernels);
}

void round_values(const Execution& execution, float* x, int64_t count) {
  if (execution.rounding != kernels::Rounding::kBf16) return;
  constexpr int64_t kPerPart = 1 << 14;
  const auto round_part = [&](int64_t part) {
    const int64_t end = std::min(count, (part + 1) * kPerPart);
    for (int64_t i = part * kPerPart; i < end; ++i) x[i] = numerics::round_to_bf16(x[i]);
  };
  const int64_t parts = (count + kPerPart - 1) / kPerPart;
  if (parts == 1) return round_part(0);
  execution.kernels.pool->run(parts, round_part);
}

}  // namespace quadrille::moe
