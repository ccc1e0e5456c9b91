// SPDX-License-Identifier: Apache-2.0
// Every illegal pair of the covering array is a typed error of can_run, and every case of the lists is none; so are the
// illegal values outside of the array. No device is asked.
#include <gtest/gtest.h>

#include "device/conformance_cases.h"
#include "moe/device_layer.h"

namespace quadrille::testing {
namespace {

// The shapes of a case without memory.
moe::DeviceMlp mlp_of(const LayerSpec& spec, int64_t experts) {
  moe::DeviceMlp mlp;
  mlp.hidden = spec.hidden;
  mlp.width = spec.width;
  mlp.activation = spec.activation_rule();
  mlp.gate_up.num_experts = mlp.down.num_experts = experts;
  mlp.gate_up.n = spec.width * (mlp.activation.gated() ? 2 : 1);
  mlp.gate_up.k = mlp.down.n = spec.hidden;
  mlp.down.k = spec.width;
  mlp.gate_up.group_size = mlp.down.group_size = spec.group;
  mlp.gate_up.numerics = mlp.down.numerics = spec.numerics;
  return mlp;
}

moe::DeviceMoeLayer layer_of(const LayerSpec& spec) {
  static const int32_t kSomeMap = 0;
  moe::DeviceMoeLayer layer;
  layer.rule = spec.rule();
  layer.experts = mlp_of(spec, spec.experts_here());
  if (!spec.expert_map().empty()) layer.expert_map = &kSomeMap;
  if (spec.shared != Shared::kNone) layer.shared = mlp_of(spec, 1);
  return layer;
}

void expect_refused(const Status& status, const std::string& what) {
  ASSERT_FALSE(status) << what;
  EXPECT_TRUE(status.error().code == ErrorCode::kUnsupported || status.error().code == ErrorCode::kInvalidArgument)
      << what << ": " << error_code_name(status.error().code);
  EXPECT_GE(status.error().message.size(), 20u) << what;
  EXPECT_NE(status.error().message.find_first_of("0123456789"), std::string::npos)
      << what << ": the error should say the numbers: " << status.error().message;
}

TEST(Refusals, EveryIllegalPair) {
  const auto pairs = illegal_pairs(factor_levels(), legal_for_layer);
  ASSERT_EQ(pairs.size(), 12u);
  for (const ValuePair& pair : pairs) {
    // Everything else at values that fit with everything.
    Assignment assignment(kNumFactors, 0);
    assignment[kExperts] = 4;
    assignment[pair.factor_a] = pair.value_a;
    assignment[pair.factor_b] = pair.value_b;
    const LayerSpec spec = spec_of(assignment);
    expect_refused(moe::can_run(layer_of(spec), spec.tokens), spec.name());
    EXPECT_EQ(moe::workspace_bytes(layer_of(spec), spec.tokens), 0u) << spec.name();
  }
}

TEST(Refusals, NoCaseOfTheLists) {
  for (const auto& cases :
       {covering_cases(), shape_cases(), field_cases(), nonfinite_cases(), sanitize_cases(), guard_cases()}) {
    for (const LayerSpec& spec : cases) {
      const Status status = moe::can_run(layer_of(spec), spec.tokens);
      EXPECT_TRUE(status) << spec.name() << ": " << status.error().message;
    }
  }
}

LayerSpec plain_spec() {
  LayerSpec spec;
  spec.tokens = 16;
  spec.hidden = 256;
  spec.width = 128;
  spec.experts = 8;
  spec.top_k = 2;
  return spec;
}

template <typename Change>
void expect_change_refused(const char* what, Change&& change) {
  moe::DeviceMoeLayer layer = layer_of(plain_spec());
  ASSERT_TRUE(moe::can_run(layer, 16)) << what;
  change(layer);
  expect_refused(moe::can_run(layer, 16), what);
}

TEST(Refusals, ValuesOutsideOfTheArray) {
  using Layer = moe::DeviceMoeLayer;
  expect_change_refused("group of 16", [](Layer& l) { l.experts.gate_up.group_size = 16; });
  expect_change_refused("group of 256", [](Layer& l) { l.experts.gate_up.group_size = 256; });
  expect_change_refused("negative group", [](Layer& l) { l.experts.down.group_size = -1; });
  expect_change_refused("gate_up has other rows", [](Layer& l) { l.experts.gate_up.n += 8; });
  expect_change_refused("down has another k", [](Layer& l) { l.experts.down.k += 128; });
  expect_change_refused("a width of 132 with one scale a channel", [](Layer& l) {
    l.experts.width = 132;
    l.experts.gate_up.n = 264;
    l.experts.down.k = 132;
    l.experts.down.group_size = l.experts.gate_up.group_size = 0;
  });
  expect_change_refused("no experts", [](Layer& l) { l.experts.gate_up.num_experts = l.experts.down.num_experts = 0; });
  expect_change_refused("fewer experts than the router knows",
                        [](Layer& l) { l.experts.gate_up.num_experts = l.experts.down.num_experts = 7; });
  expect_change_refused("top-k of 0", [](Layer& l) { l.rule.top_k = 0; });
  expect_change_refused("groups that do not divide", [](Layer& l) { l.rule.num_groups = 3; });
  expect_change_refused("shared expert of another hidden size", [](Layer& l) {
    LayerSpec other = plain_spec();
    other.hidden = 512;
    l.shared = mlp_of(other, 1);
  });
  expect_change_refused("two shared experts", [](Layer& l) { l.shared = mlp_of(plain_spec(), 2); });
}

TEST(Refusals, TokensOutsideOfTheLimits) {
  const moe::DeviceMoeLayer layer = layer_of(plain_spec());
  EXPECT_TRUE(moe::can_run(layer, 0));
  expect_refused(moe::can_run(layer, -1), "-1 tokens");
  expect_refused(moe::can_run(layer, int64_t{1} << 40), "2^40 tokens");
}

TEST(Refusals, MaskedLayout) {
  LayerSpec spec = plain_spec();
  EXPECT_TRUE(moe::can_run_masked(layer_of(spec), 16));
  expect_refused(moe::can_run_masked(layer_of(spec), -1), "max_m of -1");
  spec.numerics = kernels::Numerics::kVllm;
  const Status vllm = moe::can_run_masked(layer_of(spec), 16);
  ASSERT_FALSE(vllm);
  EXPECT_EQ(vllm.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(moe::masked_workspace_bytes(layer_of(spec), 16), 0u);
}

}  // namespace
}  // namespace quadrille::testing
