// SPDX-License-Identifier: Apache-2.0
// Random 4-bit experts in the CPU layout and random quantised rows: what a model would hand to a kernel, without one.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/api/problems.h"
#include "prepare/aligned_buffer.h"

namespace quadrille::bench {

// Matrices of one shape with uniform random codes and scales that spread over a factor of two, for both numerics. All
// codes lie in one piece, in large pages where the system gives them.
class RandomExperts {
 public:
  RandomExperts(int64_t num_experts, int64_t n, int64_t k, int64_t group, uint64_t seed);

  int64_t num_experts() const { return static_cast<int64_t>(matrices_.size()); }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t group() const { return group_; }
  const kernels::W4Matrix* matrices() const { return matrices_.data(); }
  // Codes and scales of one expert, as that arithmetic reads them.
  int64_t bytes_of_one(kernels::Numerics numerics) const;

 private:
  int64_t n_, k_, group_, groups_;
  prepare::AlignedBuffer<uint32_t> codes_;
  prepare::AlignedBuffer<uint16_t> scale_bf16_;
  prepare::AlignedBuffer<uint8_t> scale_e4m3_;
  std::vector<float> channel_scale_;
  std::vector<kernels::W4Matrix> matrices_;
};

// Rows of N(0, 1) quantised by the rule of the contract (docs/numerics.md section 2).
struct RandomRows {
  RandomRows(int64_t rows, int64_t k, uint64_t seed);
  std::vector<uint8_t> act;      // [rows, k] e4m3
  std::vector<float> act_scale;  // [rows]
};

// [rows, k] of N(0, 1) as bf16 values in fp32.
std::vector<float> random_rows_bf16(int64_t rows, int64_t k, uint64_t seed);

}  // namespace quadrille::bench
