// SPDX-License-Identifier: Apache-2.0
// The vllm preparation against golden bytes, step by step, for [N, K] and [E, N, K].
#include "prepare/vllm_stages.h"

#include <gtest/gtest.h>

#include "layout/w4_lanes16.h"
#include "prepare/prepare_w4.h"
#include "support/golden.h"
#include "support/tensors.h"

namespace quadrille::prepare {
namespace {

using quadrille::testing::differences;
using quadrille::testing::Tensors;

class VllmStages : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    tensors.emplace(quadrille::testing::data_path(std::string("kernels/prepare_vllm/") + GetParam() + ".safetensors"));
    const auto& shape = tensors->shape("codes");
    k = shape.back();
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    groups = tensors->shape("weight_scale").back();
    // One scale a channel is a group as long as the row.
    group_size = groups == 1 && k > 128 ? 0 : k / groups;
  }
  std::optional<Tensors> tensors;
  int64_t rows = 1, k = 0, groups = 0, group_size = 0;
};

TEST_P(VllmStages, NibblesInPlace) {
  auto words = tensors->get<uint32_t>("weight_packed");
  const auto packed = words;
  int4_in_place(words);
  EXPECT_EQ(differences(words, tensors->get<uint32_t>("nibbles_int4")), "");
  unified_in_place(words);
  EXPECT_EQ(differences(words, tensors->get<uint32_t>("nibbles_unified")), "");
  unified_in_place(words);
  int4_in_place(words);
  EXPECT_EQ(differences(words, packed), "");
}

TEST_P(VllmStages, Scales) {
  const auto split = split_scales(tensors->get<uint16_t>("weight_scale"), rows, groups);
  ASSERT_TRUE(split) << split.error().message;
  EXPECT_EQ(differences(split->channel_scale, tensors->get<float>("channel_scale")), "");
  EXPECT_EQ(differences(split->channel_scale8, tensors->get<float>("channel_scale8")), "");
  EXPECT_EQ(differences(split->group_scale_e4m3, tensors->get<uint8_t>("group_scale_e4m3")), "");
  EXPECT_EQ(differences(split->group_scale8_e4m3, tensors->get<uint8_t>("group_scale8_e4m3")), "");
}

TEST_P(VllmStages, TablesAndWeightBytes) {
  const auto scale8 = tensors->get<uint8_t>("group_scale8_e4m3");
  EXPECT_EQ(differences(scale_tables(scale8), tensors->get<uint8_t>("lut")), "");
  const auto words = tensors->get<uint32_t>("nibbles_int4");
  EXPECT_EQ(differences(weight_bytes(words, scale8, rows, k, group_size), tensors->get<uint8_t>("w_mn")), "");
}

// What the CPU layout holds is what the steps give: codes, group scales and channel scales of each matrix of a stack.
TEST_P(VllmStages, CpuLayoutHoldsTheSameNumbers) {
  const auto words = tensors->get<uint32_t>("weight_packed");
  const auto scales = tensors->get<uint16_t>("weight_scale");
  const auto scale8 = tensors->get<uint8_t>("group_scale8_e4m3");
  const auto channel8 = tensors->get<float>("channel_scale8");
  const CanonicalW4 matrix{
      .n = rows, .k = k, .group_size = group_size, .packed = words.data(), .codes = nullptr, .scales = scales.data()};
  auto prepared = prepare_w4(matrix, kernels::Numerics::kVllm);
  ASSERT_TRUE(prepared) << prepared.error().message;
  const layout::ScaleLanes16 map{rows, groups};
  for (int64_t row = 0; row < rows; ++row) {
    ASSERT_EQ(prepared->channel_scale[row], channel8[static_cast<size_t>(row)]);
    for (int64_t g = 0; g < groups; ++g) {
      ASSERT_EQ(prepared->scale_e4m3[map.offset(row, g)], scale8[static_cast<size_t>(row * groups + g)]);
    }
  }
  EXPECT_EQ(unprepare(*prepared).packed, words);
}

INSTANTIATE_TEST_SUITE_P(Golden, VllmStages,
                         ::testing::Values("a_rank2_g128", "b_rank3_g128", "c_rank3_g32", "d_rank2_g64_spread",
                                           "e_rank2_channel"),
                         [](const auto& file) { return std::string(file.param); });

TEST(VllmStagesErrors, NameRowAndGroup) {
  std::vector<uint16_t> scales(12, 0x3c00);
  scales[7] = 0xff80;
  const auto split = split_scales(scales, 4, 3);
  ASSERT_FALSE(split);
  EXPECT_EQ(split.error().code, ErrorCode::kInvalidData);
  EXPECT_NE(split.error().message.find("row 2, group 1"), std::string::npos) << split.error().message;
  const std::vector<uint32_t> words(24 * 32 / 8);
  const auto reordered = reorder(words, 24, 32);
  ASSERT_FALSE(reordered);
  EXPECT_EQ(reordered.error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace quadrille::prepare
