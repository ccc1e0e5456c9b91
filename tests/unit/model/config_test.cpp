// SPDX-License-Identifier: Apache-2.0
// config.json of the four families into numbers and rules, in the spellings of transformers 4 and 5.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace quadrille::model {
namespace {

using ::testing::HasSubstr;

formats::Json base(const char* architecture, const char* model_type) {
  return {{"architectures", {architecture}},
          {"model_type", model_type},
          {"hidden_size", 64},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 100},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-6},
          {"intermediate_size", 96},
          {"num_experts_per_tok", 2}};
}
formats::Json qwen3() {
  formats::Json json = base("Qwen3MoeForCausalLM", "qwen3_moe");
  json.update({{"head_dim", 32}, {"num_experts", 8}, {"moe_intermediate_size", 48}, {"norm_topk_prob", true}});
  return json;
}
formats::Json qwen2() {
  formats::Json json = base("Qwen2MoeForCausalLM", "qwen2_moe");
  json.update({{"num_experts", 60},
               {"num_experts_per_tok", 4},
               {"moe_intermediate_size", 48},
               {"shared_expert_intermediate_size", 128},
               {"norm_topk_prob", false}});
  return json;
}
formats::Json mixtral() {
  formats::Json json = base("MixtralForCausalLM", "mixtral");
  json["num_local_experts"] = 8;
  return json;
}
formats::Json olmoe() {
  formats::Json json = base("OlmoeForCausalLM", "olmoe");
  json.update({{"num_experts", 12}, {"norm_topk_prob", false}});
  return json;
}

Result<ModelConfig> make(const formats::Json& json) {
  QD_TRY(const formats::HfConfig raw, formats::parse_hf_config(json, "config.json"));
  return make_model_config(raw);
}
ModelConfig good(const formats::Json& json) {
  auto config = make(json);
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().message);
  return config.ok() ? *config : ModelConfig();
}
std::string error_of(const formats::Json& json) {
  const auto config = make(json);
  EXPECT_FALSE(config.ok());
  return config.ok() ? "" : config.error().message;
}

TEST(Config, Qwen3Moe) {
  const ModelConfig config = good(qwen3());
  EXPECT_EQ(config.family, "qwen3_moe");
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.q_width(), 128) << "heads * head_dim is not the hidden size";
  EXPECT_EQ(config.qk_norm, QkNorm::kPerHead);
  EXPECT_TRUE(config.router.renormalise);
  EXPECT_EQ(config.router.num_experts, 8);
  EXPECT_EQ(config.expert_width, 48);
  EXPECT_EQ(config.shared_width, 0);
  EXPECT_EQ(config.num_moe_layers(), 4);
  EXPECT_EQ(config.names.layer_path(3, config.names.expert_up, 17), "model.layers.3.mlp.experts.17.up_proj");
  formats::Json biased = qwen3();
  biased["attention_bias"] = true;
  EXPECT_TRUE(good(biased).qkv_bias && good(biased).o_bias);
}

TEST(Config, Qwen2Moe) {
  const ModelConfig config = good(qwen2());
  EXPECT_EQ(config.head_dim, 16) << "hidden size over heads";
  EXPECT_TRUE(config.qkv_bias);
  EXPECT_FALSE(config.o_bias);
  EXPECT_FALSE(config.router.renormalise);
  EXPECT_EQ(config.router.num_experts, 60);
  EXPECT_EQ(config.shared_width, 128);
  EXPECT_TRUE(config.shared_has_gate);
  EXPECT_EQ(config.qk_norm, QkNorm::kNone);
}

TEST(Config, Mixtral) {
  const ModelConfig config = good(mixtral());
  EXPECT_TRUE(config.router.renormalise);
  EXPECT_EQ(config.expert_width, 96);
  EXPECT_EQ(config.rope.theta, 1e6) << "the default of the family";
  EXPECT_EQ(config.names.layer_path(0, config.names.expert_up, 2), "model.layers.0.block_sparse_moe.experts.2.w3");
  EXPECT_EQ(config.names.layer_path(0, config.names.expert_gate, 2), "model.layers.0.block_sparse_moe.experts.2.w1");
}

TEST(Config, Olmoe) {
  formats::Json json = olmoe();
  EXPECT_FALSE(good(json).clip_qkv.has_value());
  json["clip_qkv"] = 8.0;
  const ModelConfig config = good(json);
  EXPECT_EQ(config.clip_qkv, 8.0);
  EXPECT_EQ(config.qk_norm, QkNorm::kWholeProjection);
  EXPECT_FALSE(config.router.renormalise);
}

TEST(Config, DenseLayers) {
  formats::Json json = qwen2();
  json["mlp_only_layers"] = {1};
  json["decoder_sparse_step"] = 2;
  const ModelConfig config = good(json);  // MoE where (layer + 1) is even and the layer is not listed
  std::vector<bool> moe;
  for (const LayerConfig& layer : config.layers) moe.push_back(layer.is_moe);
  EXPECT_EQ(moe, (std::vector<bool>{false, false, false, true}));
  EXPECT_EQ(config.dense_width, 96);
  json.erase("intermediate_size");
  EXPECT_THAT(error_of(json), HasSubstr("intermediate_size"));
}

TEST(Config, BothSpellingsOfTransformers) {
  formats::Json old = qwen3();
  old.update({{"rope_theta", 1e6}, {"rope_scaling", nullptr}, {"torch_dtype", "bfloat16"}});
  formats::Json young = qwen3();
  young.erase("num_experts");
  young.update({{"num_local_experts", 8},
                {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}},
                {"dtype", "bfloat16"}});
  EXPECT_EQ(good(old).rope.theta, 1e6);
  EXPECT_EQ(good(young).rope.theta, 1e6);
  EXPECT_EQ(good(young).router.num_experts, 8);
}

std::vector<int64_t> windows(const formats::Json& json) {
  std::vector<int64_t> all;
  for (const LayerConfig& layer : good(json).layers) all.push_back(layer.window);
  return all;
}

TEST(Config, SlidingWindows) {
  formats::Json json = mixtral();
  json["sliding_window"] = nullptr;
  EXPECT_EQ(windows(json), (std::vector<int64_t>{0, 0, 0, 0}));
  json["sliding_window"] = 128;
  EXPECT_EQ(windows(json), (std::vector<int64_t>{128, 128, 128, 128}));

  json = qwen3();
  json.update({{"sliding_window", 128}, {"use_sliding_window", false}});
  EXPECT_EQ(windows(json), (std::vector<int64_t>{0, 0, 0, 0}));
  json["use_sliding_window"] = true;
  EXPECT_EQ(windows(json), (std::vector<int64_t>{128, 128, 128, 128}));
  json["layer_types"] = {"full_attention", "sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_EQ(windows(json), (std::vector<int64_t>{0, 128, 0, 128}));

  json = qwen2();
  json.update({{"sliding_window", 64}, {"use_sliding_window", true}, {"max_window_layers", 2}});
  EXPECT_EQ(windows(json), (std::vector<int64_t>{64, 0, 0, 0}));
  json.update({{"use_sliding_window", false},
               {"layer_types", {"full_attention", "full_attention", "full_attention", "sliding_attention"}}});
  EXPECT_THAT(error_of(json), HasSubstr("layer 3"));
  json["layer_types"] = {"full_attention", "linear_attention", "full_attention", "full_attention"};
  EXPECT_THAT(error_of(json), HasSubstr("linear_attention"));
}

TEST(Config, RopeTypes) {
  formats::Json json = qwen3();
  json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  EXPECT_EQ(good(json).rope.factor, 4.0);
  json["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  const ModelConfig yarn = good(json);
  EXPECT_EQ(yarn.max_positions, 2048);
  EXPECT_NEAR(yarn.rope.attention_factor, 1.1386294361, 1e-9) << "0.1 ln 4 + 1";
  for (const char* type : {"llama3", "longrope", "dynamic", "mrope"}) {
    json["rope_scaling"] = {{"rope_type", type}, {"factor", 4.0}};
    EXPECT_THAT(error_of(json), AllOf(HasSubstr(type), HasSubstr("default, linear, yarn")));
  }
  json["rope_scaling"] = {{"rope_type", "linear"}};
  EXPECT_THAT(error_of(json), HasSubstr("factor"));
  json["rope_scaling"] = {{"rope_type", "yarn"}, {"factor", 0.5}};
  EXPECT_THAT(error_of(json), HasSubstr("factor"));
  json.erase("rope_scaling");
  json["partial_rotary_factor"] = 0.5;
  EXPECT_THAT(error_of(json), HasSubstr("partial_rotary_factor"));
}

TEST(Config, OtherArchitecturesAreRefusedByName) {
  formats::Json json = qwen3();
  json["architectures"] = {"DeepseekV3ForCausalLM"};
  EXPECT_THAT(error_of(json),
              AllOf(HasSubstr("DeepseekV3ForCausalLM"), HasSubstr("Qwen3MoeForCausalLM"),
                    HasSubstr("Qwen2MoeForCausalLM"), HasSubstr("MixtralForCausalLM"), HasSubstr("OlmoeForCausalLM")));
  json.erase("architectures");
  EXPECT_EQ(good(json).family, "qwen3_moe") << "the model type says it";
  json["model_type"] = "bert";
  EXPECT_THAT(error_of(json), HasSubstr("bert"));
}

TEST(Config, WhatDoesNotFitIsRefused) {
  formats::Json json = qwen3();
  json["hidden_act"] = "gelu";
  EXPECT_THAT(error_of(json), HasSubstr("gelu"));
  json = qwen3();
  json["head_dim"] = 31;
  EXPECT_THAT(error_of(json), HasSubstr("head_dim"));
  json = qwen3();
  json["num_experts_per_tok"] = 9;
  EXPECT_THAT(error_of(json), HasSubstr("num_experts_per_tok"));
  for (const char* key : {"num_experts", "num_experts_per_tok", "moe_intermediate_size"}) {
    json = qwen3();
    json.erase(key);
    EXPECT_THAT(error_of(json), HasSubstr(key));
  }
  json = qwen2();
  json.erase("shared_expert_intermediate_size");
  EXPECT_THAT(error_of(json), HasSubstr("shared_expert_intermediate_size"));
}

}  // namespace
}  // namespace quadrille::model
