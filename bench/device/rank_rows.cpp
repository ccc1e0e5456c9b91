// SPDX-License-Identifier: Apache-2.0
// All-reduce between GPUs, call behind call in a graph: one shot over peer memory beside NCCL. The time of a call is
// the median of the replays on the slowest rank. On a machine with one GPU two ranks share it and NCCL is left out.
#include <fmt/format.h>

#include <algorithm>

#include "bench/device/rows.h"
#include "bench/device/timing.h"
#include "parallel/nccl.h"
#include "parallel/thread_group.h"

namespace quadrille::bench {
namespace {

using parallel::Communicator;
using Reduce = std::function<Status(float* data, size_t count, device::Stream stream)>;

constexpr int kCalls = 50;  // of a graph

// Microseconds a call on the slowest rank; below zero: not to be had.
double reduce_us(Communicator& host, device::Stream stream, float* data, size_t count, const Reduce& reduce) {
  if (!reduce) return -1;
  must(reduce(data, count, stream));  // what connects at the first call
  must(device::synchronize(stream));
  must(host.barrier());
  const Timing timing = time_calls(stream, kCalls, false, [&](int) { must(reduce(data, count, stream)); });
  auto slowest = static_cast<float>(timing.burst_us);
  must(host.all_reduce_max(std::span(&slowest, 1)));
  return slowest;
}

std::string shown(double us) {
  return us < 0 ? "-" : fmt::format("{:.2f}", us);
}

void time_rank(Communicator& host, int num_gpus) {
  const int ordinal = host.rank() % num_gpus;
  must(device::use(ordinal));
  const auto stream = must(device::OwnedStream::create());
  auto peers = must(parallel::PeerRanks::create(host, ordinal, stream.get()));
  std::unique_ptr<parallel::DeviceCommunicator> nccl;
  if (num_gpus >= host.size()) {
    parallel::NcclOptions options;
    options.small = parallel::SmallReduction::kNccl;
    nccl = must(parallel::nccl_communicator(host, ordinal, stream.get(), options));
  }
  constexpr size_t kMostBytes = size_t{1} << 20;
  const auto buffer = must(device::Buffer::allocate(kMostBytes, stream.get()));
  must(device::fill(buffer.get(), 0, kMostBytes, stream.get()));
  must(device::synchronize(stream.get()));
  for (size_t bytes = 4096; bytes <= kMostBytes; bytes *= 2) {
    const size_t count = bytes / sizeof(float);
    Reduce one_shot, library;
    if (count <= parallel::PeerRanks::kMostFloats) {
      one_shot = [&](float* data, size_t n, device::Stream s) { return peers->all_reduce(data, n, false, s); };
    }
    if (nccl) library = [&](float* data, size_t n, device::Stream s) { return nccl->all_reduce_sum(data, n, s); };
    const double ours = reduce_us(host, stream.get(), buffer.as<float>(), count, one_shot);
    const double theirs = reduce_us(host, stream.get(), buffer.as<float>(), count, library);
    if (host.rank() == 0) fmt::print("{:>8} {:>10} {:>10}\n", bytes, shown(ours), shown(theirs));
  }
  const double barrier = reduce_us(host, stream.get(), buffer.as<float>(), 1,
                                   [&](float*, size_t, device::Stream s) { return peers->barrier(s); });
  if (host.rank() == 0) fmt::print("{:>8} {:>10}\n", "barrier", shown(barrier));
  must(peers->check());
  must(peers->close());
}

}  // namespace

void print_rank_rows() {
  const int num_gpus = must(device::count());
  const int num_ranks = num_gpus >= 2 ? std::min(num_gpus, 8) : 2;
  fmt::print("all-reduce of {} ranks on {} GPU{}, {} calls a graph, us a call\n{:>8} {:>10} {:>10}\n", num_ranks,
             num_gpus, num_gpus == 1 ? "" : "s", kCalls, "bytes", "one shot", "NCCL");
  must(parallel::run_rank_threads(num_ranks, [&](Communicator& host) -> Status {
    time_rank(host, num_gpus);
    return {};
  }));
}

}  // namespace quadrille::bench
