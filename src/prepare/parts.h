// SPDX-License-Identifier: Apache-2.0
// What the preparation of stacked matrices shares: the part that a row of the stack comes from, and the loop over
// blocks of rows whose error is the first in row order, however many threads look.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"

namespace quadrille::prepare {

struct PartRow {
  size_t part;
  int64_t row;
};

template <typename Part>
int64_t total_rows(std::span<const Part> parts) {
  int64_t n = 0;
  for (const Part& part : parts) n += part.n;
  return n;
}

template <typename Part>
PartRow part_row(std::span<const Part> parts, int64_t row) {
  size_t part = 0;
  while (row >= parts[part].n) row -= parts[part++].n;
  return {part, row};
}

// body(block) -> Status for every block; the error of the lowest failing block.
template <typename Body>
Status for_blocks(ThreadPool* pool, int64_t blocks, Body&& body) {
  if (pool == nullptr) {
    for (int64_t block = 0; block < blocks; ++block) QD_TRY_STATUS(body(block));
    return {};
  }
  std::vector<std::optional<Error>> errors(static_cast<size_t>(blocks));
  pool->run(blocks, [&](int64_t block) {
    if (Status status = body(block); !status) errors[static_cast<size_t>(block)] = status.error();
  });
  for (const auto& error : errors) {
    if (error.has_value()) return *error;
  }
  return {};
}

}  // namespace quadrille::prepare
