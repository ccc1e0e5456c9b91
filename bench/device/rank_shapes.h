// SPDX-License-Identifier: Apache-2.0
// The layers that are timed over ranks, the walk over shapes and rank counts, and ranks that say nothing to each other:
// a layer without its exchanges.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "bench/device/device_data.h"
#include "bench/device/rows.h"
#include "device/device.h"
#include "parallel/device_communicator.h"
#include "parallel/nccl.h"
#include "parallel/thread_group.h"

namespace quadrille::bench {

struct RankShape {
  const char* name;
  int64_t hidden, width, experts, top_k;
  int64_t shared_width;  // 0: no shared expert
};
inline constexpr RankShape kRankShapes[] = {{"qwen3-235b-a22b", 4096, 1536, 128, 8, 0},
                                            {"deepseek-v3", 7168, 2048, 256, 8, 2048}};

class SilentRank final : public parallel::DeviceCommunicator {
 public:
  // `peers`: what a layer that reaches its peers' memory asks for; nothing is done with it.
  SilentRank(int rank, int size, parallel::PeerRanks* peers = nullptr)
      : DeviceCommunicator(rank, size), peers_(peers) {}
  const char* body() const override { return "silent"; }
  Status all_reduce_sum(float*, size_t, device::Stream) override { return {}; }
  Status all_reduce_max(float*, size_t, device::Stream) override { return {}; }
  Status all_gather(const void*, size_t, void*, device::Stream) override { return {}; }
  Status all_gather_v(const void*, std::span<const size_t>, void*, device::Stream) override { return {}; }
  Status reduce_scatter_sum(const float*, std::span<const size_t>, float*, device::Stream) override { return {}; }
  Status all_to_all_v(const void*, std::span<const size_t>, void*, std::span<const size_t>, device::Stream) override {
    return {};
  }
  Status broadcast(void*, size_t, int, device::Stream) override { return {}; }
  Status barrier(device::Stream) override { return {}; }
  Status check() override { return {}; }
  parallel::PeerRanks* peers() override { return peers_; }

 private:
  parallel::PeerRanks* peers_;
};

// Every shape and row count on one rank. `Bench` is made with (host, gpu, stream, shape, options) and prints a count.
template <typename Bench>
Status time_rank(parallel::Communicator& host, const BenchOptions& options) {
  QD_TRY_STATUS(device::use(host.rank()));
  QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
  std::unique_ptr<parallel::DeviceCommunicator> gpu;
  if (host.size() > 1) {
    QD_TRY(gpu, parallel::nccl_communicator(host, host.rank(), stream.get()));
  }
  for (const RankShape& shape : kRankShapes) {
    if (std::string(shape.name).find(options.only) == std::string::npos) continue;
    Bench bench(host, gpu.get(), stream.get(), shape, options);
    std::vector<int64_t> list = options.rows;
    if (list.empty()) list = {1, 4, 16, 64, 256, 1024, 4096};
    for (const int64_t tokens : list) bench.print(tokens);
    QD_TRY_STATUS(device::synchronize(stream.get()));
  }
  if (gpu == nullptr) return {};
  QD_TRY_STATUS(gpu->check());
  return gpu->close();
}

// One rank, then `wanted` of them (0: one a GPU), a GPU and a thread each.
template <typename Bench>
void time_one_and_all(int wanted, const BenchOptions& options) {
  const int num_gpus = must(device::count());
  const int most = std::min(num_gpus, wanted > 0 ? wanted : num_gpus);
  for (const int ranks : std::set<int>{1, most}) {
    must(parallel::run_rank_threads(ranks,
                                    [&](parallel::Communicator& host) { return time_rank<Bench>(host, options); }));
  }
}

}  // namespace quadrille::bench
