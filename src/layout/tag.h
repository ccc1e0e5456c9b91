// SPDX-License-Identifier: Apache-2.0
// The name and version of a layout. Preparation stamps it on the bytes it makes; a reader compares before it believes.
#pragma once

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::layout {

struct LayoutTag {
  const char* name;  // static storage
  uint32_t version;

  friend QD_HD constexpr bool operator==(const LayoutTag& a, const LayoutTag& b) {
    const char* p = a.name;
    const char* q = b.name;
    while (*p != '\0' && *p == *q) {
      ++p;
      ++q;
    }
    return *p == *q && a.version == b.version;
  }
};

// Row n and column k of a matrix.
struct RowColumn {
  int64_t n;
  int64_t k;
  friend QD_HD constexpr bool operator==(const RowColumn& a, const RowColumn& b) { return a.n == b.n && a.k == b.k; }
};

QD_HD constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace quadrille::layout
