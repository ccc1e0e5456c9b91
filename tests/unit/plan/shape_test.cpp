// SPDX-License-Identifier: Apache-2.0
// Shapes against what their authors publish, and what config.json may say.
#include <gmock/gmock.h>

#include "formats/json.h"
#include "support/golden.h"
#include "unit/plan/plan_case.h"

namespace quadrille::plan {
namespace {

using ::testing::HasSubstr;

struct Published {
  const char* name;
  double total, total_unit;    // parameters, and half of the last digit that is published
  double active, active_unit;  // of a token, likewise
  bool with_embedding;         // whether the authors count it as active
};

// Model cards and reports of the models; all without draft layers. 3.3e9 and 37e9 are cut, not rounded.
constexpr Published kPublished[] = {{"qwen3-30b-a3b", 30.5e9, 0.05e9, 3.3e9, 0.1e9, true},
                                    {"qwen3-235b-a22b", 235e9, 0.5e9, 22e9, 0.5e9, true},
                                    {"mixtral-8x7b", 46.7e9, 0.05e9, 12.9e9, 0.05e9, true},
                                    {"olmoe-1b-7b", 6.92e9, 0.005e9, 1.3e9, 0.05e9, true},
                                    {"deepseek-v3", 671e9, 0.5e9, 37e9, 1e9, true},
                                    {"gpt-oss-120b", 116.83e9, 0.005e9, 5.13e9, 0.005e9, false}};

TEST(PlanShape, HasThePublishedParameters) {
  for (const Published& model : kPublished) {
    const PlanShape shape = named_plan_shape(model.name);
    EXPECT_NEAR(static_cast<double>(num_parameters(shape)), model.total, model.total_unit) << model.name;
    const int64_t embedding = model.with_embedding ? shape.config.vocab_size * shape.config.hidden_size : 0;
    EXPECT_NEAR(static_cast<double>(num_active_parameters(shape) + embedding), model.active, model.active_unit)
        << model.name;
  }
}

// DeepSeek-V3 by hand, part by part.
TEST(PlanShape, CountsLatentAttentionByHand) {
  const PlanShape shape = named_plan_shape("deepseek-v3");
  int64_t attention = 0, dense = 0, shared = 0;
  for (const PlanMatrix& m : plan_matrices(shape)) {
    if (m.part == PlanPart::kAttention) attention += m.n * m.k;
    if (m.part == PlanPart::kDense) dense += m.n * m.k;
    if (m.part == PlanPart::kShared) shared += m.n * m.k;
  }
  const int64_t one = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168;
  EXPECT_EQ(attention, 61 * one);
  EXPECT_EQ(dense, int64_t{3} * 3 * 7168 * 18432);
  EXPECT_EQ(shared, int64_t{58} * 3 * 7168 * 2048);
  EXPECT_EQ(cache_values(shape, 128), 576);
  EXPECT_EQ(cache_values(shape, 16), 576) << "the latent is whole on every rank";
  EXPECT_EQ(shape.why_not_run, "not run by this engine yet");
  EXPECT_EQ(named_plan_shape("qwen3-235b-a22b").why_not_run, "");
}

TEST(PlanShape, GptOssAlternatesWindows) {
  const PlanShape shape = named_plan_shape("gpt-oss-120b");
  for (size_t l = 0; l < 36; ++l) EXPECT_EQ(shape.config.layers[l].window, l % 2 == 0 ? 128 : 0);
  EXPECT_EQ(shape.forms[0].experts_up.group_size, 32);
}

TEST(PlanShape, RefusesGroupsThatDoNotDivide) {
  const auto raw = named_shape("gpt-oss-120b");
  const auto shape = make_plan_shape("gpt-oss-120b", *raw, {128});
  ASSERT_FALSE(shape);
  EXPECT_EQ(shape.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(shape.error().message, HasSubstr("2880"));
  EXPECT_THAT(shape.error().message, HasSubstr("legal groups: 0 (one scale a channel), 32, 64"));
}

TEST(PlanShape, RefusesUnknownArchitecturesAndBrokenNumbers) {
  const char* const kText = R"({"architectures": ["GPT2Model"], "model_type": "gpt2", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 256, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6})";
  auto raw = formats::parse_hf_config(*formats::parse_json(kText, "c"), "c");
  ASSERT_TRUE(raw);
  const auto unknown = make_plan_shape("x", *raw, {});
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message, HasSubstr("GPT2Model"));
  EXPECT_THAT(unknown.error().message, HasSubstr("DeepseekV3ForCausalLM"));
  for (const char* key : {"kv_lora_rank", "v_head_dim", "moe_intermediate_size"}) {
    auto broken = named_shape("deepseek-v3");
    ASSERT_TRUE(broken);
    formats::Json json = broken->raw;
    json.erase(key);
    const auto parsed = formats::parse_hf_config(json, "c");
    ASSERT_TRUE(parsed);
    const auto shape = make_plan_shape("x", *parsed, {});
    ASSERT_FALSE(shape) << key;
    EXPECT_THAT(shape.error().message, HasSubstr(key));
  }
}

// Small configs as they lie in folders, of families that run and of those that do not.
TEST(PlanShape, ReadsFolders) {
  for (const char* name : {"deepseek_v2", "deepseek_v3", "glm4_moe", "gpt_oss", "qwen2_moe", "qwen3_moe", "olmoe",
                           "mixtral", "qwen3_moe-w4a8-g32", "qwen3_moe-w4a8-channel"}) {
    const std::string path = testing::data_path(fmt::format("hf_config/{}.json", name));
    const auto json = formats::parse_json_file(path);
    ASSERT_TRUE(json) << path;
    const auto raw = formats::parse_hf_config(*json, path);
    ASSERT_TRUE(raw) << path;
    // Widths of these small models are multiples of 32.
    const bool decides = raw->quantization_config.has_value();
    const auto shape = make_plan_shape(name, *raw, {decides ? std::nullopt : std::optional<int64_t>(32)});
    ASSERT_TRUE(shape) << shape.error().message;
    EXPECT_GT(num_parameters(*shape), num_active_parameters(*shape)) << name;
    if (std::string(name) == "qwen3_moe-w4a8-channel") {
      EXPECT_EQ(shape->forms[0].experts_down.group_size, 0);
    }
  }
}

}  // namespace
}  // namespace quadrille::plan
