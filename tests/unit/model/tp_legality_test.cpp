// SPDX-License-Identifier: Apache-2.0
// Tensor-parallel sizes and shares of real shapes: by hand, and bytes against matrices that are really prepared.
#include "model/tp_legality.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "prepare/shard.h"

namespace quadrille::model {
namespace {

using layout::LayerShard;
using ::testing::Contains;
using ::testing::HasSubstr;

// A model with one kind of layer: attention and experts, both W4A8 with one group size.
PlannedModel moe_model(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t width, int64_t group) {
  PlannedModel model;
  model.shape.vocabulary = 32000;
  model.shape.num_heads = heads;
  model.shape.num_kv_heads = kv_heads;
  model.shape.head_dim = head_dim;
  layout::LayerShape layer;
  layer.qkv_w4 = true;
  layer.o = {heads * head_dim, true, group};
  layer.experts_down = {width, true, group};
  model.shape.layers = {layer, layer};
  return model;
}

std::vector<int> legal(const std::vector<TpVerdict>& verdicts, bool even_only = false) {
  std::vector<int> sizes;
  for (const TpVerdict& v : verdicts) {
    if (v.legal && (v.even || !even_only)) sizes.push_back(v.ranks);
    EXPECT_TRUE(v.legal || !v.reasons.empty()) << "a refusal has a reason";
    EXPECT_TRUE(v.even || !v.reasons.empty()) << "what is uneven is told";
  }
  return sizes;
}

TEST(TpLegality, Qwen3MoE30B) {
  const auto verdicts = legal_tp(moe_model(32, 4, 128, 768, 128));
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(legal(verdicts, true), (std::vector<int>{1, 2, 4})) << "eight ranks: 128 or 64 columns";
  EXPECT_EQ(legal(legal_tp(moe_model(32, 4, 128, 768, 32)), true), (std::vector<int>{1, 2, 4, 8}));
  EXPECT_THAT(verdicts[3].reasons, Contains("expert columns are cut inside groups of 128"));
  EXPECT_THAT(verdicts[7].reasons, Contains("4 KV heads are held 8 times in all"));
  EXPECT_THAT(verdicts[2].reasons, Contains("10 to 11 of 32 query heads a rank"));
  EXPECT_TRUE(verdicts[1].reasons.empty()) << verdicts[1].reasons[0];
}

TEST(TpLegality, Mixtral8x7B) {
  const auto verdicts = legal_tp(moe_model(32, 8, 128, 14336, 128));
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(legal(verdicts, true), (std::vector<int>{1, 2, 4, 8}));
  EXPECT_TRUE(verdicts[7].reasons.empty());
}

TEST(TpLegality, OProjIsCutWhereTheHeadsAre) {
  const auto verdicts = legal_tp(moe_model(8, 4, 32, 512, 128));
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_THAT(verdicts[3].reasons, Contains("o_proj is cut inside groups of 128"));
  EXPECT_TRUE(verdicts[1].reasons.empty());
}

TEST(TpLegality, FewHeadsAreTheLimit) {
  const PlannedModel model = moe_model(4, 2, 64, 512, 128);
  const auto verdicts = legal_tp(model);
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4}));
  EXPECT_THAT(verdicts[4].reasons[0], HasSubstr("the number of query heads is 4"));
  const auto shares = rank_shares(model, 6);
  ASSERT_FALSE(shares);
  EXPECT_EQ(shares.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(shares.error().message, HasSubstr("6 ranks: the number of query heads is 4"));
  EXPECT_THAT(shares.error().message, HasSubstr("all of this model: 1..4"));
}

TEST(TpLegality, NormsOverAllHeadsAreTold) {
  PlannedModel model = moe_model(16, 16, 128, 1024, 128);
  model.norm_spans_heads = true;
  const auto verdicts = legal_tp(model);
  EXPECT_TRUE(verdicts[0].reasons.empty());
  EXPECT_THAT(verdicts[1].reasons, Contains(HasSubstr("normed over all heads")));
}

TEST(TpLegality, KvBytesFollowTheHeads) {
  const auto shares = rank_shares(moe_model(32, 4, 128, 768, 128), 3);
  ASSERT_TRUE(shares) << shares.error().message;
  for (const RankShare& share : *shares) {
    // Two layers, keys and values of two heads of 128 bf16.
    EXPECT_EQ(share.kv_bytes_per_position, 2u * 2 * 2 * 128 * 2);
  }
}

// A dummy checkpoint of zeros with one row more than a lane block, so that padding counts.
TEST(TpLegality, BytesAreThoseOfThePreparedShards) {
  const int64_t width = 200, hidden = 64, group = 0, experts = 3;
  PlannedModel model = moe_model(4, 2, 16, width, group);
  PlannedModule gate_up;
  gate_up.cut = ModuleCut::kGateUp;
  gate_up.mlp = &LayerShard::experts;
  gate_up.layer = 1;
  gate_up.count = experts;
  gate_up.n = 2 * width;
  gate_up.k = hidden;
  gate_up.is_w4 = true;
  PlannedModule down = gate_up;
  down.cut = ModuleCut::kDown;
  down.n = hidden;
  down.k = width;
  PlannedModule o = down;
  o.cut = ModuleCut::kOutput;
  o.count = 1;
  o.k = 64;
  o.has_bias = true;
  PlannedModule embedding;
  embedding.cut = ModuleCut::kVocabulary;
  embedding.n = 32000;
  embedding.k = hidden;
  embedding.row_major = true;
  PlannedModule norm;
  norm.n = hidden;
  norm.k = 1;
  norm.row_major = true;
  model.modules = {gate_up, down, o, embedding, norm};
  const std::vector<int8_t> codes(static_cast<size_t>(2 * width * hidden), 0);
  const std::vector<uint16_t> scales(static_cast<size_t>(2 * width), 0);
  const auto matrix = [&](int64_t n, int64_t k) {
    prepare::CanonicalW4 m;
    m.n = n;
    m.k = k;
    m.codes = codes.data();
    m.scales = scales.data();
    return m;
  };
  const auto bytes = [](std::span<const prepare::CanonicalW4> parts) {
    return prepare::prepare_w4(parts, kernels::Numerics::kExact, nullptr)->size_bytes();
  };
  const auto column = [&](const prepare::CanonicalW4& whole, const layout::KShard& shard) {
    const auto part = prepare::row_parallel_shard(whole, shard, prepare::ChannelScale::kOwnGroups);
    return bytes({{part->view()}});
  };
  for (int ranks = 1; ranks <= 4; ++ranks) {
    const auto shares = rank_shares(model, ranks);
    ASSERT_TRUE(shares) << shares.error().message;
    for (const RankShare& share : *shares) {
      const LayerShard& layer = share.shard.layers[1];
      const auto rows = prepare::column_parallel_shard(matrix(width, hidden), layer.experts.columns);
      int64_t expected = experts * bytes({{rows, rows}});
      expected += experts * column(matrix(hidden, width), layer.experts.down);
      expected += column(matrix(hidden, 64), layer.attention.o) + (share.shard.rank == 0 ? 4 * hidden : 0);
      expected += 2 * share.shard.vocabulary.size() * hidden + 2 * hidden;
      EXPECT_EQ(share.weight_bytes, static_cast<uint64_t>(expected)) << ranks << " ranks, rank " << share.shard.rank;
    }
  }
}

}  // namespace
}  // namespace quadrille::model
