// SPDX-License-Identifier: Apache-2.0
// Ranks in a grid of expert-parallel by tensor-parallel ones, as device tests connect them: over each other's memory,
// which ranks that share a GPU have, too, or over NCCL with a GPU each.
#pragma once

#include <memory>

#include "moe/device_expert_parallel.h"
#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/peer_ranks.h"

namespace quadrille::testing {

// Ranks that have nothing but each other's memory: barriers, and reductions of one shot.
class PeersOnly final : public parallel::DeviceCommunicator {
 public:
  explicit PeersOnly(parallel::PeerRanks& peers) : DeviceCommunicator(peers.rank(), peers.size()), peers_(peers) {}
  const char* body() const override { return "peers"; }
  Status all_reduce_sum(float* data, size_t count, device::Stream stream) override {
    return peers_.all_reduce(data, count, false, stream);
  }
  Status all_reduce_max(float* data, size_t count, device::Stream stream) override {
    return peers_.all_reduce(data, count, true, stream);
  }
  Status all_gather(const void*, size_t, void*, device::Stream) override { return refused(); }
  Status all_gather_v(const void*, std::span<const size_t>, void*, device::Stream) override { return refused(); }
  Status reduce_scatter_sum(const float*, std::span<const size_t>, float*, device::Stream) override {
    return refused();
  }
  Status all_to_all_v(const void*, std::span<const size_t>, void*, std::span<const size_t>, device::Stream) override {
    return refused();
  }
  Status broadcast(void*, size_t, int, device::Stream) override { return refused(); }
  Status barrier(device::Stream stream) override { return peers_.barrier(stream); }
  Status check() override { return peers_.check(); }
  parallel::PeerRanks* peers() override { return &peers_; }

 private:
  static Status refused() { return make_error(ErrorCode::kUnsupported, "a collective over peer memory"); }
  parallel::PeerRanks& peers_;
};

// Ranks that say nothing to each other: what a call needs is loaded, and nothing waits.
class SilentRanks final : public parallel::DeviceCommunicator {
 public:
  SilentRanks(int rank, int size) : DeviceCommunicator(rank, size) {}
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
};

// Rank number = expert rank * tensor + tensor rank.
struct GridShape {
  int expert = 2;
  int tensor = 1;
  int size() const { return expert * tensor; }
  int expert_of(int rank) const { return rank / tensor; }
  int tensor_of(int rank) const { return rank % tensor; }
};

enum class GridLinks {
  kPeers,        // peer memory alone; ranks may share a GPU
  kNcclOneShot,  // NCCL; barriers, small sums, tokens and rows over peer memory
  kNccl,         // NCCL alone
};

// One rank's communicators.
class GridRank {
 public:
  // Collective over `host`, of shape.size() ranks; the calling thread's GPU is `ordinal`. Both outlive the object.
  static Result<std::unique_ptr<GridRank>> open(parallel::Communicator& host, const GridShape& shape, GridLinks links,
                                                int ordinal, device::Stream stream);

  parallel::DeviceCommunicator* tensor() const { return tensor_.gpu.get(); }  // null: one tensor rank
  parallel::DeviceCommunicator& expert() const { return *expert_.gpu; }
  // Collective over the expert ranks, once: memory for calls of up to max_rank_tokens, poisoned. Over NCCL alone there
  // is none, and the result says so by its null.
  Result<moe::ExpertRegion> share(const moe::DeviceMoeLayer& layer, int64_t max_rank_tokens);
  Status check() const;
  // Collective: the orderly end.
  Status close();

 private:
  struct Group {
    std::unique_ptr<parallel::Communicator> host;
    std::unique_ptr<parallel::PeerRanks> peers;
    std::unique_ptr<parallel::DeviceCommunicator> gpu;
  };
  GridRank(GridLinks links, device::Stream stream) : links_(links), stream_(stream) {}
  Status connect(Group* group, int ordinal);
  static Status close_group(Group* group);

  GridLinks links_;
  device::Stream stream_;
  Group tensor_, expert_;
  std::unique_ptr<parallel::PeerMemory> region_;
};

}  // namespace quadrille::testing
