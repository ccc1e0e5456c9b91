// SPDX-License-Identifier: Apache-2.0
#include "formats/compressed_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/golden.h"

namespace quadrille::formats {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
constexpr auto kW4A8 = QuantizationKind::kW4A8;
constexpr auto kW4A16 = QuantizationKind::kW4A16;
constexpr auto kUnquantized = QuantizationKind::kUnquantized;

Json base() {
  return Json::parse(
      R"({"quant_method":"compressed-tensors","format":"pack-quantized","quantization_status":"compressed",
   "ignore":["lm_head","re:.*mlp.gate$"],"kv_cache_scheme":null,"config_groups":{"group_0":{"targets":["Linear"],
   "weights":{"num_bits":4,"type":"int","symmetric":true,"strategy":"group","group_size":128,"dynamic":false,"actorder":null},
   "input_activations":{"num_bits":8,"type":"float","symmetric":true,"strategy":"token","dynamic":true},
   "output_activations":null}}})");
}

// base() with the value at a JSON pointer replaced.
Json with(const std::string& pointer, const Json& value) {
  Json json = base();
  json[Json::json_pointer(pointer)] = value;
  return json;
}
const std::string kGroup = "/config_groups/group_0";

Error error_of(const Json& json) {
  const auto config = QuantizationConfig::parse(json, "config.json");
  return config ? Error{ErrorCode::kCancelled, "no error"} : config.error();
}
Error error_with(const std::string& pointer, const Json& value) {
  return error_of(with(pointer, value));
}

QuantizationDecision decide(const Json& json, const std::string& module, const std::string& module_class = "Linear") {
  const auto config = QuantizationConfig::parse(json, "config.json");
  EXPECT_TRUE(config) << config.error().message;
  if (!config) return {};
  const auto decision = config->decide(module, module_class);
  EXPECT_TRUE(decision) << decision.error().message;
  return decision ? *decision : QuantizationDecision{};
}

TEST(QuantizationConfig, DecidesByTargetAndIgnore) {
  const QuantizationDecision expert = decide(base(), "model.layers.0.mlp.experts.3.down_proj");
  EXPECT_EQ(expert.kind, kW4A8);
  EXPECT_EQ(expert.group_size, 128);
  EXPECT_EQ(expert.format, WeightFormat::kPackQuantized);
  EXPECT_EQ(expert.rule, "group_0 target 'Linear'");
  const QuantizationDecision head = decide(base(), "lm_head");
  EXPECT_EQ(head.kind, kUnquantized);
  EXPECT_EQ(head.rule, "ignore 'lm_head'");
  EXPECT_EQ(decide(base(), "model.layers.0.mlp.gate").rule, "ignore 're:.*mlp.gate$'");
  const QuantizationDecision other = decide(base(), "model.embed_tokens", "Embedding");
  EXPECT_EQ(other.kind, kUnquantized);
  EXPECT_EQ(other.rule, "no target matches");
}

TEST(QuantizationConfig, RegexesAreAnchoredAtTheStartOnly) {
  const auto kind = [](const std::string& pattern, const std::string& module) {
    return decide(with("/ignore", {pattern}), module).kind;
  };
  EXPECT_EQ(kind("re:mlp", "model.mlp"), kW4A8);                    // not a search
  EXPECT_EQ(kind("re:model", "model.layers.0.mlp"), kUnquantized);  // not a full match
  EXPECT_EQ(kind("re:.*mlp.gate$", "a.mlp.gate_proj"), kW4A8);
  EXPECT_EQ(kind("re:.*mlp.gate", "a.mlp.gate_proj"), kUnquantized);  // the trap of a missing $
  EXPECT_EQ(kind("re:.*mlp.gate$", "a.mlpXgate"), kUnquantized);      // a dot is any character
  EXPECT_EQ(kind("re:a|b", "b.c"), kUnquantized);                     // both alternatives are anchored
  EXPECT_EQ(kind("re:a|b", "cb"), kW4A8);
  EXPECT_EQ(kind("re:(?P<x>a)\\.\\d+(?!\\d)", "a.12"), kUnquantized);
  EXPECT_EQ(kind("mlp.gate", "model.mlp.gate"), kW4A8);  // a path is the whole path
  EXPECT_EQ(kind("model.mlp", "model.mlp.gate"), kW4A8);
  EXPECT_EQ(kind("Linear", "model.mlp.gate"), kUnquantized);  // a class
}

TEST(QuantizationConfig, GroupsOfTheirOwnFormatAndSize) {
  Json json = base();
  json["format"] = "mixed-precision";
  json["config_groups"]["group_0"]["format"] = "pack-quantized";
  json["config_groups"]["group_0"]["targets"] = {"re:.*experts.*"};
  json["config_groups"]["group_1"] = json["config_groups"]["group_0"];
  json["config_groups"]["group_1"]["format"] = "int-quantized";
  json["config_groups"]["group_1"]["targets"] = {"re:.*self_attn.*"};
  json["config_groups"]["group_1"]["weights"]["strategy"] = "channel";
  json["config_groups"]["group_1"]["weights"]["group_size"] = nullptr;
  json["config_groups"]["group_1"]["input_activations"] = nullptr;
  const QuantizationDecision expert = decide(json, "l.0.experts.1.up_proj");
  EXPECT_EQ(expert.format, WeightFormat::kPackQuantized);
  EXPECT_EQ(expert.kind, kW4A8);
  const QuantizationDecision attention = decide(json, "l.0.self_attn.q_proj");
  EXPECT_EQ(attention.format, WeightFormat::kIntQuantized);
  EXPECT_EQ(attention.kind, kW4A16);
  EXPECT_EQ(attention.group_size, 0);
  EXPECT_EQ(decide(json, "l.0.mlp.up_proj").kind, kUnquantized);
  json["config_groups"]["group_0"].erase("format");
  EXPECT_THAT(error_of(json).message, HasSubstr("expected a format in every group"));
}

TEST(QuantizationConfig, AnExactPathBeatsARegexBeatsAClass) {
  Json json = base();
  json["ignore"] = Json::array();
  json["config_groups"]["group_1"] = json["config_groups"]["group_0"];
  json["config_groups"]["group_1"]["weights"]["group_size"] = 64;
  json["config_groups"]["group_1"]["targets"] = {"re:a.*"};
  json["config_groups"]["group_2"] = json["config_groups"]["group_0"];
  json["config_groups"]["group_2"]["weights"]["group_size"] = 32;
  json["config_groups"]["group_2"]["targets"] = {"a.b"};
  EXPECT_EQ(decide(json, "x").group_size, 128);
  EXPECT_EQ(decide(json, "a.c").group_size, 64);
  EXPECT_EQ(decide(json, "a.b").group_size, 32);
  EXPECT_EQ(decide(json, "a.b").rule, "group_2 target 'a.b'");
  // Two regexes that both match and differ: no decision is made up.
  json["config_groups"]["group_2"]["targets"] = {"re:.*c"};
  const auto config = QuantizationConfig::parse(json, "config.json");
  ASSERT_TRUE(config);
  EXPECT_THAT(config->decide("a.c").error().message, AllOf(HasSubstr("'re:a.*'"), HasSubstr("'re:.*c'")));
  json["config_groups"]["group_2"]["weights"]["group_size"] = 64;
  EXPECT_EQ(decide(json, "a.c").group_size, 64);
}

TEST(QuantizationConfig, PresetsAreListsOfTargets) {
  Json json = base();
  json["config_groups"] = {{"W4AFP8", {"Linear"}}};
  QuantizationDecision decision = decide(json, "a");
  EXPECT_EQ(decision.kind, kW4A8);
  EXPECT_EQ(decision.group_size, 128);
  EXPECT_EQ(decision.format, WeightFormat::kPackQuantized);
  json.erase("format");  // what the library infers
  EXPECT_EQ(decide(json, "a").format, WeightFormat::kIntQuantized);
  json["config_groups"] = {{"w4a16", {"Linear"}}};
  decision = decide(json, "a");
  EXPECT_EQ(decision.kind, kW4A16);
  EXPECT_EQ(decision.format, WeightFormat::kPackQuantized);
  json["config_groups"] = {{"NVFP4", {"Linear"}}};
  EXPECT_THAT(error_of(json).message, HasSubstr("'NVFP4'"));
  json["config_groups"] = {{"W4A8", {"Linear"}}};
  EXPECT_EQ(error_of(json).code, ErrorCode::kUnsupported);
}

TEST(QuantizationConfig, InfersTheStrategy) {
  Json json = base();
  Json& weights = json["config_groups"]["group_0"]["weights"];
  weights.erase("strategy");
  EXPECT_EQ(decide(json, "a").group_size, 128);
  weights["group_size"] = -1;
  EXPECT_EQ(decide(json, "a").group_size, 0);
  weights["group_size"] = nullptr;
  EXPECT_THAT(error_of(json).message, HasSubstr("weight strategy 'tensor'"));
  weights["strategy"] = "channel";
  EXPECT_EQ(decide(json, "a").group_size, 0);
}

TEST(QuantizationConfig, AcceptsWhatTheLibraryWrites) {
  for (const auto& [name, kind, group, format] :
       {std::tuple("olmoe-w4a8-g128", kW4A8, 128, WeightFormat::kPackQuantized),
        std::tuple("qwen3_moe-w4a8-channel", kW4A8, 0, WeightFormat::kPackQuantized),
        std::tuple("qwen3_moe-w4a8-g32", kW4A8, 32, WeightFormat::kPackQuantized),
        std::tuple("mixtral-w4a16-g128", kW4A16, 128, WeightFormat::kPackQuantized),
        std::tuple("mixtral-w4a8-g128-int", kW4A8, 128, WeightFormat::kIntQuantized)}) {
    const auto json = parse_json_file(quadrille::testing::data_path(std::string("hf_config/") + name + ".json"));
    ASSERT_TRUE(json) << json.error().message;
    const QuantizationDecision decision = decide((*json)["quantization_config"], "model.layers.1.self_attn.q_proj");
    EXPECT_EQ(decision.kind, kind) << name;
    EXPECT_EQ(decision.group_size, group) << name;
    EXPECT_EQ(decision.format, format) << name;
    const char* gate =
        std::string(name).find("mixtral") == 0 ? "model.layers.1.block_sparse_moe.gate" : "model.layers.1.mlp.gate";
    EXPECT_EQ(decide((*json)["quantization_config"], gate).kind, kUnquantized) << name;
  }
}

TEST(QuantizationConfig, HarmlessSpellingsAreAccepted) {
  EXPECT_EQ(error_of(base()).message, "no error");
  EXPECT_EQ(error_with("/sparsity_config", Json::object()).message, "no error");
  EXPECT_EQ(error_with("/sparsity_config", {{"format", "dense"}}).message, "no error");
  EXPECT_EQ(error_with("/transform_config", Json::object()).message, "no error");
  EXPECT_EQ(error_with("/transform_config", {{"config_groups", Json::object()}}).message, "no error");
  EXPECT_EQ(error_with("/some_future_key", 1).message, "no error");
  EXPECT_EQ(error_with("/quantization_status", "frozen").message, "no error");
  EXPECT_EQ(error_with(kGroup + "/weights/actorder", "weight").message, "no error");
  EXPECT_EQ(error_with(kGroup + "/weights/actorder", "static").message, "no error");
  EXPECT_EQ(error_with(kGroup + "/weights/scale_dtype", "torch.bfloat16").message, "no error");
}

TEST(QuantizationConfig, RefusesByName) {
  struct Case {
    std::string pointer;
    Json value;
    std::string part;
  };
  const std::string weights = kGroup + "/weights";
  const std::string inputs = kGroup + "/input_activations";
  const Case cases[] = {
      {"/quant_method", "gptq", "quant_method 'gptq'"},
      {"/quant_method", "awq", "'awq'"},
      {"/format", "nvfp4-pack-quantized", "format 'nvfp4-pack-quantized'"},
      {"/format", "marlin-24", "marlin-24"},
      {"/quantization_status", "initialized", "initialized"},
      {"/kv_cache_scheme", {{"num_bits", 8}}, "kv_cache_scheme"},
      {"/sparsity_config", {{"format", "sparse-24-bitmask"}}, "sparse-24-bitmask"},
      {"/moe_sparsity_config", {{"a", 1}}, "moe_sparsity_config"},
      {"/transform_config", {{"config_groups", {{"R1", {{"type", "hadamard"}}}}}}, "transform"},
      {kGroup + "/output_activations", {{"num_bits", 8}}, "output_activations"},
      {kGroup + "/weights", nullptr, "without quantised weights"},
      {kGroup + "/format", "float-quantized", "format 'float-quantized'"},
      {weights + "/num_bits", 8, "8-bit weights"},
      {weights + "/num_bits", 3, "3-bit weights"},
      {weights + "/type", "float", "weights of type 'float'"},
      {weights + "/symmetric", false, "asymmetric weights"},
      {weights + "/dynamic", true, "weights.dynamic"},
      {weights + "/actorder", "group", "activation order \"group\""},
      {weights + "/actorder", "dynamic", "activation order"},
      {weights + "/actorder", true, "activation order"},
      {weights + "/group_size", 16,
       "group size 16 is not run; this engine runs int4 weights, symmetric, with group_size 32, 64, 128"},
      {weights + "/scale_dtype", "torch.float8_e4m3fn", "float8_e4m3fn"},
      {inputs + "/type", "int", "activations of type 'int' (INT8)"},
      {inputs + "/num_bits", 4, "4-bit activations"},
      {inputs + "/symmetric", false, "asymmetric activations"},
      {inputs + "/dynamic", false, "static activation scales"},
      {inputs + "/strategy", "tensor", "activation strategy 'tensor'"},
  };
  for (const Case& c : cases) {
    const Error error = error_with(c.pointer, c.value);
    EXPECT_EQ(error.code, ErrorCode::kUnsupported) << c.pointer << ": " << error.message;
    EXPECT_THAT(error.message, AllOf(HasSubstr("config.json"), HasSubstr(c.part))) << c.pointer;
  }
}

TEST(QuantizationConfig, RefusesWhatBreaksTheFormat) {
  struct Case {
    std::string pointer;
    Json value;
    std::string part;
  };
  const std::string weights = kGroup + "/weights";
  const Case cases[] = {
      {"/quant_method", nullptr, "quant_method"},
      {"/config_groups", Json::object(), "at least one group"},
      {"/config_groups", nullptr, "config_groups"},
      {"/config_groups/group_0", 3, "group_0"},
      {"/config_groups/group_0", Json::array({1}), "group_0"},
      {kGroup + "/targets", nullptr, "targets"},
      {kGroup + "/targets", "Linear", "targets"},
      {kGroup + "/colour", 1, "group_0.colour' is not a key"},
      {kGroup + "/format", "mixed-precision", "for the whole config only"},
      {weights + "/bits", 4, "weights.bits' is not a key"},
      {weights + "/type", "fp", "weights.type"},
      {weights + "/strategy", "rows", "weights.strategy"},
      {weights + "/group_size", 0, "weights.group_size"},
      {weights + "/group_size", -2, "weights.group_size"},
      {weights + "/group_size", nullptr, "a positive integer for strategy 'group'"},
      {weights + "/strategy", "channel", "none for strategy 'channel'"},
      {weights + "/block_structure", {128, 128}, "block_structure"},
      {weights + "/dynamic", "maybe", "weights.dynamic"},
      {weights + "/actorder", "sideways", "weights.actorder"},
      {weights + "/num_bits", "4", "weights.num_bits"},
      {"/ignore", {1}, "ignore"},
      {"/ignore", {"re:("}, "'re:(' is no valid regular expression"},
      {"/ignore", {""}, "1 to 16384 bytes"},
      {"/ignore", {std::string(20'000, 'a')}, "1 to 16384 bytes"},
      {"/ignore", {"re:" + std::string(2000, '(') + std::string(2000, ')')}, "no valid regular expression"},
      {"/ignore", {"re:\\C"}, "no valid regular expression"},
  };
  for (const Case& c : cases) {
    const Error error = error_with(c.pointer, c.value);
    EXPECT_EQ(error.code, ErrorCode::kInvalidData) << c.pointer << ": " << error.message;
    EXPECT_THAT(error.message, HasSubstr(c.part)) << c.pointer;
  }
  EXPECT_FALSE(QuantizationConfig::parse(Json::array(), "config.json"));
}

TEST(QuantizationConfig, ARegexThatExplodesIsAnError) {
  const auto config = QuantizationConfig::parse(with("/ignore", {"re:(a+)+$"}), "config.json");
  ASSERT_TRUE(config) << config.error().message;
  const auto decision = config->decide(std::string(200, 'a') + "b");
  ASSERT_FALSE(decision);
  EXPECT_EQ(decision.error().code, ErrorCode::kInvalidData);
  EXPECT_THAT(decision.error().message, HasSubstr("re:(a+)+$"));
}

}  // namespace
}  // namespace quadrille::formats
