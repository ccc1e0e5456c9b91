// SPDX-License-Identifier: Apache-2.0
#include "quantize/error_report.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <string_view>

#include "numerics/bf16.h"

namespace quadrille::quantize {

void ErrorSums::add(const ErrorSums& other) {
  count += other.count;
  sum_square_error += other.sum_square_error;
  sum_square += other.sum_square;
  max_error = std::max(max_error, other.max_error);
  max_abs = std::max(max_abs, other.max_abs);
  clipped += other.clipped;
}

double ErrorSums::relative_rms() const {
  return sum_square > 0 ? std::sqrt(sum_square_error / sum_square) : 0.0;
}

ErrorSums row_error(std::span<const float> x, const int8_t* codes, const uint16_t* scales, int64_t group_size) {
  ErrorSums sums;
  const auto k = static_cast<int64_t>(x.size());
  const int64_t group = group_size == 0 ? k : group_size;
  sums.count = k;
  for (int64_t first = 0, g = 0; first < k; first += group, ++g) {
    const double scale = numerics::bf16_to_f32(scales[g]);
    for (int64_t i = first; i < first + group; ++i) {
      const double value = x[i];
      const double error = value - scale * codes[i];
      sums.sum_square_error += error * error;
      sums.sum_square += value * value;
      sums.max_error = std::max(sums.max_error, std::fabs(error));
      sums.max_abs = std::max(sums.max_abs, std::fabs(value));
      sums.clipped += value > 7.5 * scale || value < -8.5 * scale ? 1 : 0;
    }
  }
  return sums;
}

std::map<std::string, ErrorSums> ErrorReport::by_kind() const {
  std::map<std::string, ErrorSums> result;
  for (const TensorError& tensor : tensors) result[tensor.kind].add(tensor.sums);
  return result;
}

ErrorSums ErrorReport::total() const {
  ErrorSums sums;
  for (const TensorError& tensor : tensors) sums.add(tensor.sums);
  return sums;
}

std::string kind_of_module(const std::string& module_path) {
  constexpr std::string_view kLayers = "layers.";
  std::string_view rest = module_path;
  if (const size_t place = rest.find(kLayers); place != std::string_view::npos)
    rest = rest.substr(place + kLayers.size());
  std::string kind;
  while (!rest.empty()) {
    const size_t dot = std::min(rest.find('.'), rest.size());
    const std::string_view part = rest.substr(0, dot);
    const bool is_number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c); });
    if (!is_number) {
      if (!kind.empty()) kind += '.';
      kind += part;
    }
    rest = rest.substr(std::min(dot + 1, rest.size()));
  }
  return kind;
}

}  // namespace quadrille::quantize
