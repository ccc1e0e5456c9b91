// SPDX-License-Identifier: Apache-2.0
// What quantisation costs: the error of each weight against its 4-bit form, and the sum for each kind of matrix.
// Filled by folder.h; shown by the command line.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace quadrille::quantize {

// Sums over elements; add up over rows, tensors and kinds in a fixed order.
struct ErrorSums {
  int64_t count = 0;
  double sum_square_error = 0;
  double sum_square = 0;
  double max_error = 0;  // largest |w - scale * code|
  double max_abs = 0;    // largest |w|
  int64_t clipped = 0;   // elements whose quotient lies above 7.5 or below -8.5

  void add(const ErrorSums& other);
  // sqrt(sum of squared errors / sum of squares); 0 for a tensor of zeros without error.
  double relative_rms() const;
};

// One row: x [K] fp32, codes [K], scales [G] bf16 bits.
ErrorSums row_error(std::span<const float> x, const int8_t* codes, const uint16_t* scales, int64_t group_size);

struct TensorError {
  std::string name;  // module path, without ".weight"
  std::string kind;  // "experts.down_proj", "self_attn.q_proj": the path without prefix, layer and expert numbers
  std::vector<int64_t> shape;
  ErrorSums sums;
};

struct ErrorReport {
  std::vector<TensorError> tensors;
  std::map<std::string, ErrorSums> by_kind() const;
  ErrorSums total() const;
};

// "model.layers.3.mlp.experts.17.down_proj" -> "mlp.experts.down_proj"
std::string kind_of_module(const std::string& module_path);

}  // namespace quadrille::quantize
