// SPDX-License-Identifier: Apache-2.0
#include "device/stream_time.h"

#include <algorithm>
#include <limits>

namespace quadrille::device {

Result<double> fastest_seconds(Stream stream, int rounds, const std::function<Status()>& enqueue) {
  QD_TRY(const OwnedEvent begin, OwnedEvent::create(true));
  QD_TRY(const OwnedEvent end, OwnedEvent::create(true));
  double fastest = std::numeric_limits<double>::infinity();
  for (int round = 0; round < rounds; ++round) {
    QD_TRY_STATUS(record(begin.get(), stream));
    QD_TRY_STATUS(enqueue());
    QD_TRY_STATUS(record(end.get(), stream));
    QD_TRY_STATUS(synchronize(end.get()));
    QD_TRY(const float ms, elapsed_ms(begin.get(), end.get()));
    fastest = std::min(fastest, 1e-3 * static_cast<double>(ms));
  }
  return fastest;
}

}  // namespace quadrille::device
