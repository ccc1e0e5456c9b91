// SPDX-License-Identifier: Apache-2.0
#include "device/link_rate.h"

#include "device/stream_time.h"

namespace quadrille::device {

Result<double> host_to_device_rate() {
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr int kRounds = 6;
  QD_TRY(const OwnedStream stream, OwnedStream::create());
  QD_TRY(const PinnedBuffer host, PinnedBuffer::allocate(kBytes));
  QD_TRY(const Buffer memory, Buffer::allocate(kBytes, stream.get()));
  QD_TRY(const double seconds, fastest_seconds(stream.get(), kRounds, [&] {
           return copy_to_device(memory.get(), host.get(), kBytes, stream.get());
         }));
  return static_cast<double>(kBytes) / seconds;
}

}  // namespace quadrille::device
