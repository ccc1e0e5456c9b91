// SPDX-License-Identifier: Apache-2.0
#include "device/link_rate.h"

#include <algorithm>

namespace quadrille::device {

Result<double> host_to_device_rate() {
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr int kRounds = 6;
  QD_TRY(const OwnedStream stream, OwnedStream::create());
  QD_TRY(const OwnedEvent begin, OwnedEvent::create(true));
  QD_TRY(const OwnedEvent end, OwnedEvent::create(true));
  QD_TRY(const PinnedBuffer host, PinnedBuffer::allocate(kBytes));
  QD_TRY(const Buffer memory, Buffer::allocate(kBytes, stream.get()));
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    QD_TRY_STATUS(record(begin.get(), stream.get()));
    QD_TRY_STATUS(copy_to_device(memory.get(), host.get(), kBytes, stream.get()));
    QD_TRY_STATUS(record(end.get(), stream.get()));
    QD_TRY_STATUS(synchronize(end.get()));
    QD_TRY(const float ms, elapsed_ms(begin.get(), end.get()));
    best = std::max(best, static_cast<double>(kBytes) / (static_cast<double>(ms) * 1e-3));
  }
  return best;
}

}  // namespace quadrille::device
