// SPDX-License-Identifier: Apache-2.0
// Tensor-parallel sizes of real shapes, by hand.
#include "model/tp_legality.h"

#include <gtest/gtest.h>

namespace quadrille::model {
namespace {

ModelConfig heads(int64_t num_heads, int64_t kv_heads, int64_t head_dim) {
  ModelConfig config;
  config.num_heads = num_heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  return config;
}

std::vector<int> legal(const std::vector<TpVerdict>& verdicts, bool even_only = false) {
  std::vector<int> sizes;
  for (const TpVerdict& v : verdicts) {
    if (v.legal && (v.even || !even_only)) sizes.push_back(v.ranks);
    EXPECT_TRUE(v.legal || !v.reasons.empty()) << "a refusal has a reason";
  }
  return sizes;
}

TEST(TpLegality, Qwen3MoE30B) {
  const auto verdicts = tp_verdicts(heads(32, 4, 128), 128, {{"experts.down_proj", 768, 128}});
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4})) << "768 is six groups; eight ranks have too few";
  EXPECT_EQ(legal(verdicts, true), (std::vector<int>{1, 2})) << "four ranks share six groups unevenly";
  EXPECT_NE(verdicts[7].reasons.back().find("6 groups of 128 for 8 ranks"), std::string::npos)
      << verdicts[7].reasons.back();
}

TEST(TpLegality, Mixtral8x7B) {
  const auto verdicts = tp_verdicts(heads(32, 8, 128), 128, {{"experts.down_proj", 14336, 128}});
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(legal(verdicts, true), (std::vector<int>{1, 2, 4, 8}));
}

TEST(TpLegality, FewKvHeadsRepeat) {
  // Four kv heads on eight ranks: each is kept twice, sixteen query heads split in two.
  const auto verdicts = tp_verdicts(heads(64, 4, 128), 128, {{"experts.down_proj", 1536, 128}});
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2, 3, 4, 8}));
  EXPECT_NE(verdicts[4].reasons[0].find("4 kv heads"), std::string::npos) << "five ranks";
}

TEST(TpLegality, GroupsOfOProjSpanHeads) {
  // Heads of 32 with groups of 128: four query heads a group, so two kv heads of two query heads go together.
  const auto verdicts = tp_verdicts(heads(8, 4, 32), 128, {});
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1, 2}));
  EXPECT_EQ(legal(tp_verdicts(heads(8, 4, 32), 0, {})), (std::vector<int>{1, 2, 3, 4, 8}));
}

TEST(TpLegality, OneRankIsAlwaysLegal) {
  const auto verdicts = tp_verdicts(heads(1, 1, 8), 0, {{"experts.down_proj", 8, 0}});
  EXPECT_EQ(legal(verdicts), (std::vector<int>{1}));
}

}  // namespace
}  // namespace quadrille::model
