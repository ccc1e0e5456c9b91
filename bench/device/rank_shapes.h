// SPDX-License-Identifier: Apache-2.0
// The layers that are timed over ranks, and ranks that say nothing to each other: a layer without its exchanges.
#pragma once

#include "parallel/device_communicator.h"

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

}  // namespace quadrille::bench
