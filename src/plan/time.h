// SPDX-License-Identifier: Apache-2.0
// Predicted times of the parts of a step on one rank, from the rates of rates.h. docs/scaling.md has the formulas
// and how far they are from what was measured.
#pragma once

#include <cstdint>

#include "plan/rates.h"
#include "plan/routing.h"
#include "plan/shape.h"

namespace quadrille::plan {

// A grouped product: out [rows, n] = act [rows, k] x W [n, k] of each expert.
struct GroupedProduct {
  double experts = 1;      // that are here
  UniformRouting routing;  // of one expert
  int64_t n = 0, k = 0;
  LinearForm form;
  double choice_rows = 0;   // rows from which the tile is chosen
  double output_bytes = 2;  // of one value
};
double product_us(const GpuRates& rates, const GroupedProduct& product);

// The routed experts of one layer on one rank.
struct ExpertWork {
  int64_t hidden = 0;
  int64_t columns = 0;  // of gate, of up
  int64_t down_k = 0;   // K of down's matrix
  double experts = 0;
  LinearForm up, down;
  UniformRouting routing;
  double choice_rows = 0;
  double tokens = 0;  // that are combined here
};
struct ExpertTime {
  double gemm1 = 0, gemm2 = 0;
  double rows = 0;  // plan, quantise twice, combine
  double total() const { return gemm1 + gemm2 + rows; }
};
ExpertTime expert_time(const GpuRates& rates, const ExpertWork& work);

// One matrix for all rows; W4A8 or bf16.
double linear_us(const GpuRates& rates, int64_t n, int64_t k, const LinearForm& form, double rows);
// A row-wise kernel that reads and writes so many bytes.
double rows_us(const GpuRates& rates, double bytes);

// Attention itself.
struct AttentionWork {
  double cache_bytes = 0;  // keys and values that are read
  double flops = 0;
};
double attention_us(const GpuRates& rates, const AttentionWork& work);

}  // namespace quadrille::plan
