// SPDX-License-Identifier: Apache-2.0
#include "model/device_columns.h"

#include "device/order.h"

namespace quadrille::model {

Status gather_columns(const ColumnGather& gather, parallel::DeviceCommunicator& ranks, device::Stream stream) {
  std::vector<size_t> bytes;
  for (const layout::Range range : gather.ranges) {
    bytes.push_back(static_cast<size_t>(gather.num_rows * column_pitch(range) * gather.element_bytes));
  }
  device::before_step("gather_columns", stream);
  QD_TRY_STATUS(ranks.all_gather_v(gather.mine, bytes, gather.gathered, stream));
  const auto* from = static_cast<const uint8_t*>(gather.gathered);
  auto* const whole = static_cast<uint8_t*>(gather.whole);
  for (size_t r = 0; r < gather.ranges.size(); ++r) {
    const layout::Range range = gather.ranges[r];
    device::RowCopy copy;
    copy.to = whole + range.begin * gather.element_bytes;
    copy.to_pitch = static_cast<size_t>(gather.whole_pitch * gather.element_bytes);
    copy.from = from;
    copy.from_pitch = static_cast<size_t>(column_pitch(range) * gather.element_bytes);
    copy.row_bytes = static_cast<size_t>(range.size() * gather.element_bytes);
    copy.rows = static_cast<size_t>(gather.num_rows);
    QD_TRY_STATUS(device::copy_rows_on_device(copy, stream));
    from += bytes[r];
  }
  return {};
}

}  // namespace quadrille::model
