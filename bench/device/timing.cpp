// SPDX-License-Identifier: Apache-2.0
#include "bench/device/timing.h"

#include <algorithm>
#include <chrono>

namespace quadrille::bench {
namespace {

constexpr int kReplays = 30;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

double replay_us(const device::Graph& graph, device::Stream stream, const device::OwnedEvent& begin,
                 const device::OwnedEvent& end, int times) {
  must(device::record(begin.get(), stream));
  for (int i = 0; i < times; ++i) must(graph.launch(stream));
  must(device::record(end.get(), stream));
  must(device::synchronize(end.get()));
  return must(device::elapsed_ms(begin.get(), end.get())) * 1e3 / times;
}

}  // namespace

Timing time_calls(device::Stream stream, int calls, bool sustained, const std::function<void(int)>& enqueue) {
  const auto graph = must(device::Graph::capture(stream, [&]() -> Status {
    for (int i = 0; i < calls; ++i) enqueue(i);
    return {};
  }));
  const auto begin = must(device::OwnedEvent::create(true));
  const auto end = must(device::OwnedEvent::create(true));
  for (int i = 0; i < 3; ++i) replay_us(graph, stream, begin, end, 1);
  std::vector<double> times;
  for (int i = 0; i < kReplays; ++i) times.push_back(replay_us(graph, stream, begin, end, 1));
  Timing timing;
  timing.burst_us = median(times) / calls;
  if (!sustained) return timing;
  // Power limits show after half a second of load.
  const int warm = std::max(1, static_cast<int>(0.6e6 / (timing.burst_us * calls)));
  replay_us(graph, stream, begin, end, warm);
  timing.sustained_us = replay_us(graph, stream, begin, end, std::max(1, warm * 5 / 6)) / calls;
  return timing;
}

double copy_bytes_per_second(device::Stream stream) {
  constexpr size_t kBytes = size_t{1} << 30;
  const auto from = must(device::Buffer::allocate(kBytes, stream));
  const auto to = must(device::Buffer::allocate(kBytes, stream));
  must(device::fill(from.get(), 0x5a, kBytes, stream));
  const Timing timing =
      time_calls(stream, 1, false, [&](int) { must(device::copy_on_device(to.get(), from.get(), kBytes, stream)); });
  return 2.0 * kBytes / (timing.burst_us * 1e-6);
}

}  // namespace quadrille::bench
