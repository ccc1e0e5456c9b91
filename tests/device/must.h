// SPDX-License-Identifier: Apache-2.0
// A Result that a test relies on: its value, or an exception with the error's text, which fails the test.
#pragma once

#include <stdexcept>
#include <utility>

#include "core/result.h"

namespace quadrille::testing {

template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(result).value();
}
inline void must(const Status& status) {
  if (!status) throw std::runtime_error(status.error().message);
}

}  // namespace quadrille::testing
