// SPDX-License-Identifier: Apache-2.0
// Expert-parallel ranks of a device layer: which rank serves which route, which steps a rank enqueues, what it refuses.
// What the steps compute is for tests/device.
#include <gmock/gmock.h>

#include <numeric>

#include "kernels/cuda/ranks/expert_logic.h"
#include "moe/device_expert_parallel.h"
#include "unit/moe/device_fixture.h"

namespace quadrille::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<moe::Placement> placements() {
  std::vector<moe::Placement> all;
  for (const int ranks : {1, 2, 3, 8}) all.push_back(*moe::Placement::even(60, ranks));
  all.push_back(*moe::Placement::of(5, {{4, 0}, {}, {3, 2, 1}}));
  auto replicas = *moe::Placement::of(6, {{0, 1, 2}, {3, 4}, {5}});
  for (const auto& [expert, rank] : {std::pair{0, 2}, {3, 2}, {5, 0}, {3, 0}}) EXPECT_TRUE(replicas.add(expert, rank));
  all.push_back(replicas);
  return all;
}

TEST(LocalExperts, EveryRouteIsServedOnceInTheSlotOfItsExpert) {
  for (const moe::Placement& placement : placements()) {
    const int64_t experts = placement.num_experts();
    std::vector<std::vector<int32_t>> local;
    for (int r = 0; r < placement.num_ranks(); ++r) local.push_back(moe::local_experts(placement, r));
    for (int source = 0; source < placement.num_ranks(); ++source) {
      const std::vector<int32_t> serving = placement.serving_ranks(source);
      for (int32_t e = -2; e < experts + 2; ++e) {
        int served = 0;
        for (int rank = 0; rank < placement.num_ranks(); ++rank) {
          kernels::LocalRoutes p;
          p.num_experts = experts;
          p.local = local[static_cast<size_t>(rank)].data();
          const kernels::cuda::LocalRoute route = kernels::cuda::local_route(p, source, e);
          EXPECT_EQ(route.bad, e < -1 || e >= experts);
          if (route.expert < 0) continue;
          ++served;
          EXPECT_EQ(rank, serving[static_cast<size_t>(e)]);
          EXPECT_EQ(placement.slots(rank)[static_cast<size_t>(route.expert)], e);
        }
        EXPECT_EQ(served, e >= 0 && e < experts ? 1 : 0);
      }
    }
  }
}

TEST(TokenPlaces, RanksWithoutTokensArePassedOver) {
  kernels::RankTokens p;
  p.num_ranks = 5;
  p.top_k = 8;
  p.act_bytes = 512;
  const int64_t tokens[] = {0, 3, 0, 0, 2};
  for (int r = 0; r < 5; ++r) {
    p.first[r + 1] = p.first[r] + tokens[r];
    p.records[r] = far_memory(r);
  }
  for (int64_t t = 0; t < 5; ++t) {
    const kernels::cuda::TokenPlace place = kernels::cuda::token_place(p, t);
    EXPECT_EQ(place.rank, t < 3 ? 1 : 4);
    EXPECT_EQ(place.token, t < 3 ? t : t - 3);
    EXPECT_EQ(kernels::cuda::record_of(p, place), far_memory(place.rank) + place.token * 640);
  }
  EXPECT_EQ(kernels::token_record_pitch(512, 31), 640);
  EXPECT_EQ(kernels::token_record_pitch(512, 32), 768);
}

// --- Steps -----------------------------------------------------------------------------------------------------------

kernels::CombineRanks last_combine;
kernels::PackTokens last_pack;

kernels::PeerTable recording_peers() {
  kernels::PeerTable table{};
  table.pack_tokens = [](const kernels::PackTokens& p, device::Stream stream) {
    last_pack = p;
    record("pack_tokens", stream, {span_of(p.act_scale, p.num_tokens * 4)}, {});
  };
  table.local_routes = [](const kernels::LocalRoutes& p, device::Stream stream) {
    record("local_routes", stream, {span_of(p.tokens.records[0], 1)},
           {span_of(p.ids, p.tokens.first[p.tokens.num_ranks] * p.tokens.top_k * 4)});
  };
  table.place_tokens = [](const kernels::PlaceTokens& p, device::Stream stream) {
    const int64_t routes = p.tokens.first[p.tokens.num_ranks] * p.tokens.top_k;
    record("place_tokens", stream, {span_of(p.tokens.records[0], 1), span_of(p.slot_of_route, routes * 4)},
           {span_of(p.act, routes * p.tokens.act_bytes), span_of(p.act_scale, routes * 4)});
  };
  table.return_rows = [](const kernels::ReturnRows& p, device::Stream stream) {
    record("return_rows", stream,
           {span_of(p.slot_of_route, p.num_routes * 4), span_of(p.rows, p.num_routes * p.row_bytes)},
           {span_of(p.out, p.num_routes * p.row_bytes)});
  };
  table.combine_ranks = [](const kernels::CombineRanks& p, device::Stream stream) {
    last_combine = p;
    record("combine_ranks", stream, {span_of(p.rows[0], 1), span_of(p.shared, p.num_tokens * p.width * 2)}, {});
  };
  return table;
}

class RecordingExperts final : public parallel::DeviceCommunicator {
 public:
  RecordingExperts(int rank, int size) : DeviceCommunicator(rank, size) {}
  const char* body() const override { return "recording"; }
  Status all_reduce_sum(float*, size_t, device::Stream) override { return refused(); }
  Status all_reduce_max(float*, size_t, device::Stream) override { return refused(); }
  Status all_gather(const void*, size_t, void*, device::Stream) override { return refused(); }
  Status all_gather_v(const void* mine, std::span<const size_t> bytes, void* all, device::Stream stream) override {
    gathered.assign(bytes.begin(), bytes.end());
    const size_t before = std::accumulate(bytes.begin(), bytes.begin() + rank(), size_t{0});
    EXPECT_EQ(mine, static_cast<const std::byte*>(all) + before) << "its own place";
    const size_t total = std::accumulate(bytes.begin(), bytes.end(), size_t{0});
    record("all_gather_v", stream, {}, {span_of(all, static_cast<int64_t>(total))});
    return {};
  }
  Status reduce_scatter_sum(const float*, std::span<const size_t>, float*, device::Stream) override {
    return refused();
  }
  Status all_to_all_v(const void* send, std::span<const size_t> send_bytes, void* recv,
                      std::span<const size_t> recv_bytes, device::Stream stream) override {
    const auto total = [](std::span<const size_t> bytes) {
      return static_cast<int64_t>(std::accumulate(bytes.begin(), bytes.end(), size_t{0}));
    };
    sent.assign(send_bytes.begin(), send_bytes.end());
    record("all_to_all_v", stream, {span_of(send, total(send_bytes))}, {span_of(recv, total(recv_bytes))});
    return {};
  }
  Status broadcast(void*, size_t, int, device::Stream) override { return refused(); }
  Status barrier(device::Stream) override { return refused(); }
  Status check() override { return {}; }

  std::vector<size_t> gathered, sent;

 private:
  static Status refused() { return make_error(ErrorCode::kUnsupported, "a collective that no layer asks for"); }
};

// Eight experts of the router, three of them here; rank 1 of 3.
class DeviceExpertTest : public DeviceLayerTest {
 protected:
  DeviceExpertTest() : ranks(1, 3), peers(recording_peers()) {
    layer.experts = make_mlp(3, 256, 128, 10);
    layer.ranks.expert = &ranks;
  }
  Status run_rank() {
    const moe::ExpertCall call{peers, {far<int32_t>(7), far<int32_t>(8)}, tokens, {}};
    const size_t bytes = moe::expert_workspace_bytes(layer, 33, false);
    workspace = span_of(far_memory(20), static_cast<int64_t>(bytes));
    return moe::run_expert_parallel_layer(table, layer, batch, call, far_memory(20), bytes, streams, far<uint32_t>(6));
  }

  RecordingExperts ranks;
  kernels::PeerTable peers;
  std::vector<int64_t> tokens = {8, 33, 0};
};

TEST_F(DeviceExpertTest, TokensGoOutRowsComeBack) {
  ASSERT_TRUE(run_rank()) << run_rank().error().message;
  EXPECT_THAT(record.names(), ElementsAre("quantize_tokens", "pack_tokens", "all_gather_v", "local_routes",
                                          "plan_routes", "place_tokens", "gemm1", "quantize_listed", "gemm2",
                                          "return_rows", "all_to_all_v", "combine_ranks"));
  expect_in_bounds();
  expect_reads_find_their_writers();
  const size_t pitch = 256 + 128, row = 2 * 256 * 2;
  EXPECT_THAT(ranks.gathered, ElementsAre(8 * pitch, 33 * pitch, 0u));
  EXPECT_THAT(ranks.sent, ElementsAre(8 * row, 33 * row, 0u));
  EXPECT_EQ(record.plans[0].num_tokens, 41);
  EXPECT_EQ(record.plans[0].expert_map, nullptr) << "ids are experts here already";
  EXPECT_EQ(record.plans[0].num_experts, 3);
  EXPECT_EQ(last_combine.num_tokens, 33);
  EXPECT_EQ(last_combine.ids, batch.topk_ids);
  EXPECT_EQ(last_combine.weight, batch.topk_weights);
  EXPECT_EQ(last_combine.out, batch.out);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(last_combine.slots[r], nullptr);
    EXPECT_EQ(static_cast<const uint8_t*>(last_combine.rows[r]) - static_cast<const uint8_t*>(last_combine.rows[0]),
              static_cast<ptrdiff_t>(static_cast<size_t>(r) * 33 * row));
  }
}

TEST_F(DeviceExpertTest, ARankWithoutTokensServesTheOthers) {
  tokens = {7, 0, 12};
  batch = {};
  ASSERT_TRUE(run_rank()) << run_rank().error().message;
  EXPECT_THAT(record.names(), ElementsAre("all_gather_v", "local_routes", "plan_routes", "place_tokens", "gemm1",
                                          "quantize_listed", "gemm2", "return_rows", "all_to_all_v"));
}

TEST_F(DeviceExpertTest, ARankWithoutExpertsSendsItsTokens) {
  layer.experts.gate_up.num_experts = layer.experts.down.num_experts = 0;
  layer.experts.gate_up.weights = layer.experts.down.weights = nullptr;
  ASSERT_TRUE(run_rank()) << run_rank().error().message;
  EXPECT_THAT(record.names(),
              ElementsAre("quantize_tokens", "pack_tokens", "all_gather_v", "all_to_all_v", "combine_ranks"));
}

TEST_F(DeviceExpertTest, NothingToDoIsNothingEnqueued) {
  tokens = {0, 0, 0};
  batch = {};
  ASSERT_TRUE(run_rank()) << run_rank().error().message;
  EXPECT_TRUE(record.calls.empty());
}

TEST_F(DeviceExpertTest, WrongCountsAreRefusedBeforeAnyWork) {
  tokens = {7, 33};
  auto refused = run_rank();
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("2 counts of tokens, expected one a rank: 3"));
  tokens = {7, 32, 0};
  refused = run_rank();
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("a batch of 33 tokens, 32 expected of rank 1"));
  tokens = {int64_t{1} << 30, 33, 0};
  refused = run_rank();
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("tokens of all ranks together"));
  tokens = {34, 33, 0};
  refused = run_rank();
  ASSERT_TRUE(refused) << refused.error().message << ": fits where the largest count of three ranks was planned for";
  layer.ranks.expert = nullptr;
  refused = run_rank();
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message, HasSubstr("a communicator of its ranks"));
}

}  // namespace
}  // namespace quadrille::testing
