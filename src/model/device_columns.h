// SPDX-License-Identifier: Apache-2.0
// Columns that tensor-parallel ranks hold of the same rows, put together on every rank's GPU. Called by the decoder for
// logits and for norms that span a whole projection.
#pragma once

#include <cstdint>
#include <vector>

#include "core/result.h"
#include "device/device.h"
#include "layout/shard_plan.h"
#include "parallel/device_communicator.h"

namespace quadrille::model {

// Elements from one row of a rank's columns to the next: a product's out features come in eights.
constexpr int64_t column_pitch(layout::Range columns) {
  return (columns.size() + 7) / 8 * 8;
}

struct ColumnGather {
  int64_t num_rows = 0;
  int64_t element_bytes = 0;
  std::vector<layout::Range> ranges;  // of each rank, in the whole row; copies that overlap are equal
  const void* mine = nullptr;         // [num_rows, column_pitch of this rank's range]
  void* gathered = nullptr;           // scratch: the same of every rank, one after the other
  void* whole = nullptr;              // out [num_rows, whole_pitch]
  int64_t whole_pitch = 0;            // elements
};

// Enqueues; a collective. Errors: those of the communicator.
Status gather_columns(const ColumnGather& gather, parallel::DeviceCommunicator& ranks, device::Stream stream);

}  // namespace quadrille::model
