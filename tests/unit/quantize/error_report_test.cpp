// SPDX-License-Identifier: Apache-2.0
#include "quantize/error_report.h"

#include <gtest/gtest.h>

#include <cmath>

namespace quadrille::quantize {
namespace {

TEST(ErrorReport, SumsARow) {
  // Scales 1 and 0.5: values 1.5, -0.5, 3, 9 beside 1, 0, 6 * 0.5, 7 * 0.5.
  const float x[] = {1.5f, -0.5f, 3.0f, 9.0f};
  const int8_t codes[] = {1, 0, 6, 7};
  const uint16_t scales[] = {0x3f80, 0x3f00};
  const ErrorSums sums = row_error(x, codes, scales, 2);
  EXPECT_EQ(sums.count, 4);
  EXPECT_EQ(sums.sum_square_error, 0.25 + 0.25 + 0.0 + 5.5 * 5.5);
  EXPECT_EQ(sums.sum_square, 2.25 + 0.25 + 9.0 + 81.0);
  EXPECT_EQ(sums.max_error, 5.5);
  EXPECT_EQ(sums.max_abs, 9.0);
  EXPECT_EQ(sums.clipped, 1);
  EXPECT_EQ(sums.relative_rms(), std::sqrt(30.75 / 92.5));
  EXPECT_EQ(ErrorSums().relative_rms(), 0.0);
}

TEST(ErrorReport, AddsUpByKind) {
  ErrorReport report;
  report.tensors.push_back(
      {"model.layers.0.mlp.experts.0.up_proj", "mlp.experts.up_proj", {1, 4}, {4, 1.0, 4.0, 0.5, 2.0, 0}});
  report.tensors.push_back(
      {"model.layers.1.mlp.experts.1.up_proj", "mlp.experts.up_proj", {1, 4}, {4, 3.0, 12.0, 1.5, 3.0, 1}});
  report.tensors.push_back({"model.layers.0.self_attn.q_proj", "self_attn.q_proj", {1, 4}, {4, 0.0, 1.0, 0.0, 1.0, 0}});
  ASSERT_EQ(report.by_kind().size(), 2u);
  EXPECT_EQ(report.by_kind().at("mlp.experts.up_proj").relative_rms(), 0.5);
  EXPECT_EQ(report.by_kind().at("mlp.experts.up_proj").max_error, 1.5);
  EXPECT_EQ(report.total().count, 12);
  EXPECT_EQ(report.total().clipped, 1);
}

TEST(ErrorReport, NamesTheKindOfAModule) {
  EXPECT_EQ(kind_of_module("model.layers.3.mlp.experts.17.down_proj"), "mlp.experts.down_proj");
  EXPECT_EQ(kind_of_module("model.layers.3.block_sparse_moe.experts.7.w1"), "block_sparse_moe.experts.w1");
  EXPECT_EQ(kind_of_module("model.layers.12.self_attn.q_proj"), "self_attn.q_proj");
  EXPECT_EQ(kind_of_module("lm_head"), "lm_head");
}

}  // namespace
}  // namespace quadrille::quantize
