// SPDX-License-Identifier: Apache-2.0
// Differences between two arrays of codes, said in one line: how many, where the first is, both bit patterns.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"

namespace quadrille::testing {

// Rows of `width` codes; empty when all bits are equal.
template <typename T>
std::string bit_differences(std::span<const T> found, std::span<const T> expected, int64_t width) {
  if (found.size() != expected.size()) return fmt::format("{} values beside {}", found.size(), expected.size());
  size_t count = 0, first = 0;
  for (size_t i = found.size(); i-- > 0;) {
    if (found[i] == expected[i]) continue;
    ++count;
    first = i;
  }
  if (count == 0) return "";
  const auto w = static_cast<size_t>(width);
  return fmt::format("{} of {} differ; first at row {} column {}: found {:#x}, expected {:#x}", count, found.size(),
                     first / w, first % w, found[first], expected[first]);
}
template <typename T>
std::string bit_differences(const std::vector<T>& found, const std::vector<T>& expected, int64_t width) {
  return bit_differences(std::span<const T>(found), std::span<const T>(expected), width);
}

}  // namespace quadrille::testing
