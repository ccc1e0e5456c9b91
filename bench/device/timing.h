// SPDX-License-Identifier: Apache-2.0
// How a time is taken: a graph of many calls over rotating data, replayed; medians, or the sustained mean under load.
#pragma once

#include <functional>
#include <stdexcept>
#include <vector>

#include "device/device.h"

namespace quadrille::bench {

struct Timing {
  double burst_us = 0;      // median of the replays, divided by the calls of a graph
  double sustained_us = 0;  // mean over 0.5 s after 0.6 s of load; 0 where it was not asked for
};

// `enqueue(i)` puts call i of `calls` on the stream. Throws std::runtime_error with the library's message.
Timing time_calls(device::Stream stream, int calls, bool sustained, const std::function<void(int)>& enqueue);

// Bytes read plus written a second by a device copy of 1 GiB, median of 10.
double copy_bytes_per_second(device::Stream stream);

// The value, or the error as an exception: a benchmark has nobody to report to.
template <typename T>
T must(Result<T> result) {
  if (!result) throw std::runtime_error(result.error().message);
  return std::move(result).value();
}
inline void must(const Status& status) {
  if (!status) throw std::runtime_error(status.error().message);
}

}  // namespace quadrille::bench
