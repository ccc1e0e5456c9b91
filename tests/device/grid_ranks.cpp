// SPDX-License-Identifier: Apache-2.0
// Both groups are splits of the communicator of all ranks.
#include "device/grid_ranks.h"

#include "device/device_memory.h"
#include "parallel/nccl.h"

namespace quadrille::testing {

using parallel::PeerRanks;

namespace {
// Longer than any pause of these tests.
constexpr parallel::PeerOptions kPeerOptions{std::chrono::seconds(20)};
}  // namespace

Status GridRank::connect(Group* group, int ordinal) {
  if (links_ == GridLinks::kPeers) {
    QD_TRY(group->peers, PeerRanks::create(*group->host, ordinal, stream_, kPeerOptions));
    group->gpu = std::make_unique<PeersOnly>(*group->peers);
    return {};
  }
  parallel::NcclOptions options;
  options.small = links_ == GridLinks::kNccl ? parallel::SmallReduction::kNccl : parallel::SmallReduction::kOneShot;
  options.peers = kPeerOptions;
  QD_TRY(group->gpu, parallel::nccl_communicator(*group->host, ordinal, stream_, options));
  return {};
}

Result<std::unique_ptr<GridRank>> GridRank::open(parallel::Communicator& host, const GridShape& shape, GridLinks links,
                                                 int ordinal, device::Stream stream) {
  std::unique_ptr<GridRank> rank(new GridRank(links, stream));
  QD_TRY(rank->expert_.host, host.split(shape.tensor_of(host.rank())));
  QD_TRY(rank->tensor_.host, host.split(shape.expert_of(host.rank())));
  // One group at a time: on a shared GPU one that takes memory may wait for the first sum of another.
  for (int t = 0; t < shape.tensor; ++t) {
    if (t == shape.tensor_of(host.rank())) QD_TRY_STATUS(rank->connect(&rank->expert_, ordinal));
    QD_TRY_STATUS(host.barrier());
  }
  for (int e = 0; e < shape.expert && shape.tensor > 1; ++e) {
    if (e == shape.expert_of(host.rank())) QD_TRY_STATUS(rank->connect(&rank->tensor_, ordinal));
    QD_TRY_STATUS(host.barrier());
  }
  return rank;
}

Result<moe::ExpertRegion> GridRank::share(const moe::DeviceMoeLayer& layer, int64_t max_rank_tokens) {
  if (links_ == GridLinks::kNccl) return moe::ExpertRegion{};
  moe::ExpertRegion region;
  region.parts = moe::expert_region_parts(layer, max_rank_tokens);
  QD_TRY(region_, expert().peers()->share(region.parts.total()));
  QD_TRY_STATUS(device::fill(region_->at(expert().rank()), kPoison, region.parts.total(), stream_));
  QD_TRY_STATUS(device::synchronize(stream_));
  QD_TRY_STATUS(expert_.host->barrier());
  region.memory = region_.get();
  return region;
}

Status GridRank::check() const {
  if (tensor() != nullptr) QD_TRY_STATUS(tensor()->check());
  return expert().check();
}

Status GridRank::close_group(Group* group) {
  if (group->gpu != nullptr) QD_TRY_STATUS(group->gpu->close());
  if (group->peers != nullptr) QD_TRY_STATUS(group->peers->close());
  return {};
}

Status GridRank::close() {
  QD_TRY_STATUS(device::synchronize(stream_));
  if (region_ != nullptr) QD_TRY_STATUS(region_->close());
  QD_TRY_STATUS(close_group(&tensor_));
  return close_group(&expert_);
}

}  // namespace quadrille::testing
