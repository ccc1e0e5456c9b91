// SPDX-License-Identifier: Apache-2.0
#include "formats/hf_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/golden.h"
#include "support/scratch_folder.h"

namespace quadrille::formats {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

HfConfig read(const std::string& name) {
  const std::string path = quadrille::testing::data_path("hf_config/" + name + ".json");
  const auto json = parse_json_file(path);
  EXPECT_TRUE(json) << json.error().message;
  const auto config = parse_hf_config(*json, path);
  EXPECT_TRUE(config) << config.error().message;
  return *config;
}

// What a family needs, in the spelling of transformers 4.
Json base() {
  return Json::parse(R"({"architectures":["Qwen3MoeForCausalLM"],"model_type":"qwen3_moe","hidden_size":64,
    "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":100,"rms_norm_eps":1e-6,
    "max_position_embeddings":512,"rope_theta":1000000.0,"num_experts":6,"num_experts_per_tok":2,"torch_dtype":"bfloat16"})");
}

Result<HfConfig> parse_with(const std::string& key, const Json& value) {
  Json json = base();
  json[key] = value;
  return parse_hf_config(json, "config.json");
}

std::string error_with(const std::string& key, const Json& value) {
  const auto config = parse_with(key, value);
  return config ? "no error" : config.error().message;
}

TEST(HfConfig, ReadsQwen3Moe) {
  const HfConfig config = read("qwen3_moe");
  EXPECT_THAT(config.architectures, ElementsAre("Qwen3MoeForCausalLM"));
  EXPECT_EQ(config.model_type, "qwen3_moe");
  EXPECT_EQ(config.hidden_size, 256);
  EXPECT_EQ(config.num_hidden_layers, 2);
  EXPECT_EQ(config.num_attention_heads, 4);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_EQ(config.require_head_dim().value(), 32);
  EXPECT_EQ(config.vocab_size, 384);
  EXPECT_EQ(config.max_position_embeddings, 512);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_EQ(config.rope.type, "default");
  EXPECT_EQ(config.num_experts, 6);
  EXPECT_EQ(config.num_experts_per_tok, 2);
  EXPECT_EQ(config.moe_intermediate_size, 128);
  EXPECT_EQ(config.norm_topk_prob, true);
  EXPECT_EQ(config.tie_word_embeddings, false);
  EXPECT_EQ(config.sliding_window, std::nullopt);
  EXPECT_EQ(config.use_sliding_window, false);
  EXPECT_EQ(config.dtype, "bfloat16");
  EXPECT_THAT(config.eos_token_id, ElementsAre(2));
  EXPECT_FALSE(config.quantization_config.has_value());
}

TEST(HfConfig, ReadsTheOtherFamilies) {
  const HfConfig qwen2 = read("qwen2_moe");
  EXPECT_THAT(qwen2.mlp_only_layers, ElementsAre(1));
  EXPECT_EQ(qwen2.shared_expert_intermediate_size, 256);
  EXPECT_EQ(qwen2.intermediate_size, 320);
  EXPECT_EQ(qwen2.qkv_bias, true);
  EXPECT_EQ(qwen2.dtype, "bfloat16");
  EXPECT_EQ(qwen2.require_head_dim().value(), 32);
  const HfConfig mixtral = read("mixtral");
  EXPECT_EQ(mixtral.num_experts, 8);
  EXPECT_EQ(mixtral.head_dim, std::nullopt);
  EXPECT_EQ(mixtral.norm_topk_prob, std::nullopt);
  const HfConfig clip = read("olmoe_clip");
  EXPECT_EQ(clip.clip_qkv, 1.0);
  EXPECT_EQ(clip.num_key_value_heads, 2);
  EXPECT_EQ(read("olmoe").clip_qkv, std::nullopt);
  const HfConfig deepseek = read("deepseek_v3");
  EXPECT_EQ(deepseek.num_experts, 8);
  EXPECT_EQ(deepseek.n_shared_experts, 1);
  EXPECT_EQ(deepseek.routed_scaling_factor, 2.5);
  EXPECT_EQ(deepseek.scoring_func, "sigmoid");
  EXPECT_EQ(deepseek.n_group, 4);
  EXPECT_EQ(deepseek.topk_group, 2);
  EXPECT_EQ(deepseek.rope.type, "yarn");
  EXPECT_EQ(deepseek.rope.number("factor"), 40.0);
  const HfConfig glm = read("glm4_moe");
  EXPECT_THAT(glm.eos_token_id, ElementsAre(2, 3));
  EXPECT_EQ(glm.rope.partial_rotary_factor, 0.5);
  const HfConfig oss = read("gpt_oss");
  EXPECT_EQ(oss.sliding_window, 16);
  EXPECT_THAT(oss.layer_types, ElementsAre("sliding_attention", "full_attention"));
  EXPECT_EQ(oss.rope.flags.at("truncate"), false);
  EXPECT_TRUE(read("olmoe-w4a8-g128").quantization_config.has_value());
}

TEST(HfConfig, TheSpellingOfTransformers5IsTheSame) {
  Json json = base();
  json.erase("rope_theta");
  json.erase("torch_dtype");
  json["dtype"] = "bfloat16";
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 1000000.0}};
  json["layer_types"] = {"full_attention", "full_attention"};
  const auto config = parse_hf_config(json, "config.json");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->rope.theta, 1e6);
  EXPECT_EQ(config->rope.type, "default");
  EXPECT_EQ(config->dtype, "bfloat16");

  json["rope_parameters"] = {{"rope_type", "yarn"}, {"rope_theta", 5000.0},          {"factor", 4.0},
                             {"truncate", false},   {"partial_rotary_factor", 0.25}, {"mrope_section", {11, 11, 10}}};
  const auto yarn = parse_hf_config(json, "config.json");
  ASSERT_TRUE(yarn) << yarn.error().message;
  EXPECT_EQ(yarn->rope.type, "yarn");
  EXPECT_EQ(yarn->rope.theta, 5000.0);
  EXPECT_EQ(yarn->rope.number("factor"), 4.0);
  EXPECT_EQ(yarn->rope.partial_rotary_factor, 0.25);
  EXPECT_EQ(yarn->rope.flags.at("truncate"), false);
  EXPECT_THAT(yarn->rope.lists.at("mrope_section"), ElementsAre(11, 11, 10));
}

TEST(HfConfig, SpellingsThatContradictEachOtherAreRefused) {
  EXPECT_THAT(error_with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e4}}),
              HasSubstr("'rope_theta': expected the rope_theta 10000"));
  EXPECT_EQ(error_with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}), "no error");
  Json json = base();
  json["rope_parameters"] = {{"rope_type", "yarn"}, {"factor", 4.0}};
  json["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  EXPECT_THAT(parse_hf_config(json, "f").error().message, HasSubstr("rope_type 'yarn'"));
  json["rope_scaling"] = {{"type", "yarn"}, {"factor", 8.0}};
  EXPECT_THAT(parse_hf_config(json, "f").error().message, HasSubstr("'factor'"));
  json["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}};
  EXPECT_TRUE(parse_hf_config(json, "f"));
  EXPECT_THAT(error_with("num_local_experts", 7), HasSubstr("'num_local_experts': expected the 6 of 'num_experts'"));
  EXPECT_EQ(error_with("num_local_experts", 6), "no error");
  EXPECT_THAT(error_with("dtype", "float16"), HasSubstr("'torch_dtype'"));
  EXPECT_EQ(error_with("dtype", "torch.bfloat16"), "no error");
}

TEST(HfConfig, RopeOfEachKindOfLayerIsRefused) {
  const std::string message = error_with("rope_parameters", {{"full_attention", {{"rope_theta", 1e6}}}});
  EXPECT_THAT(message, HasSubstr("rope_parameters.full_attention"));
}

TEST(HfConfig, RefusesAbsurdNumbersByKey) {
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                          "max_position_embeddings", "num_key_value_heads", "num_experts", "num_experts_per_tok",
                          "head_dim", "intermediate_size", "moe_intermediate_size", "decoder_sparse_step"}) {
    for (const Json& value : {Json(0), Json(-1), Json(int64_t{1} << 60), Json(18446744073709551615u), Json(2.5),
                              Json("8"), Json(true), Json::array({8})}) {
      const std::string message = error_with(key, value);
      EXPECT_THAT(message, HasSubstr(std::string("config.json: '") + key + "'")) << value;
      EXPECT_THAT(message, HasSubstr("found")) << value;
    }
  }
}

TEST(HfConfig, RefusesAbsurdValuesOfOtherKinds) {
  EXPECT_THAT(error_with("rms_norm_eps", 0), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error_with("rms_norm_eps", -1e-6), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error_with("rms_norm_eps", 1.5), HasSubstr("rms_norm_eps"));
  EXPECT_THAT(error_with("rope_theta", 0), HasSubstr("rope_theta"));
  EXPECT_THAT(error_with("rope_theta", -1), HasSubstr("rope_theta"));
  EXPECT_THAT(error_with("rope_scaling", "yarn"), HasSubstr("'rope_scaling': expected an object"));
  EXPECT_THAT(error_with("rope_scaling", {{"type", 3}}), HasSubstr("rope_scaling.type"));
  EXPECT_THAT(error_with("rope_scaling", {{"factor", 1e300}}), HasSubstr("rope_scaling.factor"));
  EXPECT_THAT(error_with("num_key_value_heads", 3), HasSubstr("a divisor of num_attention_heads, 4"));
  EXPECT_THAT(error_with("num_key_value_heads", 8), HasSubstr("from 1 to 4"));
  EXPECT_THAT(error_with("num_experts_per_tok", 7), HasSubstr("from 1 to the number of experts, 6"));
  EXPECT_THAT(error_with("mlp_only_layers", {-1}), HasSubstr("mlp_only_layers"));
  EXPECT_THAT(error_with("mlp_only_layers", 3), HasSubstr("mlp_only_layers"));
  EXPECT_THAT(error_with("layer_types", {"full_attention"}), HasSubstr("2 entries"));
  EXPECT_THAT(error_with("clip_qkv", -1.0), HasSubstr("clip_qkv"));
  EXPECT_THAT(error_with("eos_token_id", -5), HasSubstr("eos_token_id"));
  EXPECT_THAT(error_with("eos_token_id", Json::array({1, "x"})), HasSubstr("eos_token_id"));
  EXPECT_THAT(error_with("tie_word_embeddings", 1), HasSubstr("true or false"));
  EXPECT_THAT(error_with("architectures", "Qwen"), HasSubstr("architectures"));
  EXPECT_THAT(error_with("model_type", nullptr), HasSubstr("'model_type' is missing"));
  EXPECT_THAT(error_with("hidden_size", nullptr), HasSubstr("'hidden_size' is missing"));
  EXPECT_THAT(error_with("quantization_config", "fp8"), HasSubstr("quantization_config"));
}

TEST(HfConfig, NoneIsWrittenInManyWays) {
  EXPECT_EQ(parse_with("sliding_window", 0)->sliding_window, std::nullopt);
  EXPECT_EQ(parse_with("pad_token_id", -1)->pad_token_id, std::nullopt);
  EXPECT_EQ(parse_with("num_key_value_heads", nullptr)->num_key_value_heads, 4);
  EXPECT_TRUE(parse_with("eos_token_id", nullptr)->eos_token_id.empty());
}

TEST(HfConfig, SaysWhatAFamilyMisses) {
  const auto config = parse_hf_config(base(), "config.json");
  ASSERT_TRUE(config);
  EXPECT_EQ(config->require_head_dim().value(), 16);
  EXPECT_EQ(config->require_int(config->moe_intermediate_size, "moe_intermediate_size").error().message,
            "config.json: 'moe_intermediate_size' is missing; model_type 'qwen3_moe' needs it");
  EXPECT_FALSE(parse_with("hidden_size", 66)->require_head_dim());
}

TEST(HfConfig, AMultimodalWrapperIsNamed) {
  const auto config =
      parse_hf_config(Json::parse(R"({"model_type":"qwen3_5_moe","text_config":{"hidden_size":64}})"), "config.json");
  ASSERT_FALSE(config);
  EXPECT_EQ(config.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(config.error().message, HasSubstr("text_config"));
}

TEST(HfConfig, ReadsAFolder) {
  const quadrille::testing::ScratchFolder folder;
  EXPECT_EQ(read_hf_config(folder.path()).error().code, ErrorCode::kNotFound);
  folder.write("config.json", base().dump());
  const auto config = read_hf_config(folder.path());
  ASSERT_TRUE(config);
  EXPECT_EQ(config->file, folder.file("config.json"));
  folder.write("config.json", "[]");
  EXPECT_THAT(read_hf_config(folder.path()).error().message, HasSubstr("config.json"));
}

TEST(HfGenerationConfig, ReadsWhatIsThere) {
  const quadrille::testing::ScratchFolder folder;
  const auto none = read_hf_generation_config(folder.path());
  ASSERT_TRUE(none);
  EXPECT_TRUE(none->eos_token_id.empty());
  folder.write("generation_config.json",
               R"({"eos_token_id":[151645,151643],"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"min_p":0,
                   "repetition_penalty":1.05,"bos_token_id":151643,"transformers_version":"5.0.0"})");
  const auto config = read_hf_generation_config(folder.path());
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_THAT(config->eos_token_id, ElementsAre(151645, 151643));
  EXPECT_EQ(config->temperature, 0.6);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(config->top_p, 0.95);
  EXPECT_EQ(config->min_p, 0.0);
  EXPECT_EQ(config->repetition_penalty, 1.05);
  EXPECT_EQ(config->do_sample, true);
}

TEST(HfGenerationConfig, RefusesAbsurdValues) {
  for (const char* text : {R"({"temperature":-1})", R"({"top_p":1.5})", R"({"top_k":-2})",
                           R"({"repetition_penalty":0})", R"({"eos_token_id":"x"})", R"({"min_p":-0.1})", "[]"})
    EXPECT_FALSE(parse_hf_generation_config(Json::parse(text), "g.json")) << text;
}

}  // namespace
}  // namespace quadrille::formats
