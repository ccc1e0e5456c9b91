// SPDX-License-Identifier: Apache-2.0
// Loading: what is refused and in which words, what is accepted in other spellings with the same bits, progress,
// cancellation, a file that shrinks on the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "edited_model.h"
#include "golden_model.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

const char* const kBase = "models/olmoe_clip/w4a8-g64";
const std::vector<int32_t> kPrompt = {5, 17, 200, 3, 91, 44, 8};

model::LoadOptions options() {
  return options_of({"generic", kernels::Numerics::kExact, kernels::Rounding::kBf16});
}

class Load : public ::testing::Test {
 protected:
  EditedModel edited{data_path(kBase)};

  void expect_error(ErrorCode code, const std::vector<std::string>& words, const model::LoadOptions& with = options()) {
    const auto model = model::Model::load(edited.write(), with);
    ASSERT_FALSE(model.ok());
    EXPECT_EQ(error_code_name(model.error().code), std::string(error_code_name(code))) << model.error().message;
    for (const std::string& word : words) EXPECT_THAT(model.error().message, HasSubstr(word));
  }
  std::vector<float> logits_of(const std::string& folder, const model::LoadOptions& with = options()) {
    const auto model = load_model(folder, with);
    return model == nullptr ? std::vector<float>() : run_sequences(*model, {kPrompt})[0].values;
  }
  std::vector<float> base_logits() { return logits_of(data_path(kBase)); }
  formats::Json& group() { return edited.config["quantization_config"]["config_groups"]["group_0"]; }
  formats::Json& ignore() { return edited.config["quantization_config"]["ignore"]; }
};

TEST_F(Load, TheSameTensorsGiveTheSameBits) {
  EXPECT_EQ(logits_of(edited.write()), base_logits());
}

TEST_F(Load, MissingTensor) {
  edited.tensors.erase("model.layers.1.mlp.experts.4.up_proj.weight_scale");
  expect_error(ErrorCode::kNotFound, {"model.layers.1.mlp.experts.4.up_proj.weight_scale", "quadrille_model_"});
}

TEST_F(Load, WrongShape) {
  EditedTensor& scale = edited.tensor("model.layers.0.self_attn.q_proj.weight_scale");
  scale.shape = {scale.shape[1], scale.shape[0]};
  expect_error(ErrorCode::kInvalidData, {"model.safetensors", "self_attn.q_proj.weight_scale", "[128, 2]", "[2, 128]"});
}

TEST_F(Load, WrongType) {
  edited.tensor("model.layers.0.self_attn.q_proj.weight_packed").dtype = formats::DType::kU32;
  expect_error(ErrorCode::kInvalidData, {"self_attn.q_proj.weight_packed", "I32 [128, 16]", "U32 [128, 16]"});
}

TEST_F(Load, LyingWeightShape) {
  edited.tensor("model.layers.0.mlp.experts.0.gate_proj.weight_shape").bytes[0] = std::byte{7};
  expect_error(ErrorCode::kInvalidData, {"experts.0.gate_proj.weight_shape", "[192, 128]", "[7, 128]"});
}

TEST_F(Load, ScaleThatIsNoNumber) {
  edited.tensor("model.layers.1.mlp.experts.2.down_proj.weight_scale").set16(7, 0x7fc0);
  expect_error(ErrorCode::kInvalidData, {"experts.2.down_proj.weight_scale", "[2, 1]", "NaN"});
}

TEST_F(Load, ScaleThatIsInfinite) {
  edited.tensor("model.layers.0.self_attn.k_proj.weight_scale").set16(0, 0xff80);
  expect_error(ErrorCode::kInvalidData, {"self_attn.k_proj.weight_scale", "[0, 0]", "infinite"});
}

TEST_F(Load, WeightsThatAreNoNumbers) {
  for (const char* name : {"model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
                           "model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.q_norm.weight"}) {
    const EditedTensor saved = edited.tensor(name);
    edited.tensor(name).set16(3, 0x7fff);
    expect_error(ErrorCode::kInvalidData, {name, "NaN"});
    edited.tensor(name) = saved;
  }
}

TEST_F(Load, AsymmetricAndReorderedWeightsAreRefused) {
  edited.tensors["model.layers.0.self_attn.q_proj.weight_g_idx"] = EditedTensor::zeros({128});
  expect_error(ErrorCode::kUnsupported, {"q_proj.weight_g_idx"});
  edited.tensors.erase("model.layers.0.self_attn.q_proj.weight_g_idx");
  edited.tensors["model.layers.0.mlp.experts.1.up_proj.weight_zero_point"] = EditedTensor::zeros({24, 2});
  expect_error(ErrorCode::kUnsupported, {"experts.1.up_proj.weight_zero_point"});
}

TEST_F(Load, ScalesThatBf16HoldsMayBeWide) {
  for (auto& [name, tensor] : edited.tensors) {
    if (name.ends_with("weight_scale")) tensor.widen();
  }
  EXPECT_EQ(logits_of(edited.write()), base_logits());
}

TEST_F(Load, ScalesThatBf16DoesNotHoldNeedTheirOption) {
  EditedTensor& scale = edited.tensor("model.layers.1.self_attn.o_proj.weight_scale");
  scale.widen();
  scale.set32(5, 0x3c000001);  // 2^-7 and a little: rounds to 2^-7, 1.2e-7 away
  expect_error(ErrorCode::kUnsupported, {"o_proj.weight_scale", "[2, 1]", "F32", "--scales round"});
  model::LoadOptions round = options();
  round.round_scales = true;
  const auto model = load_model(edited.write(), round);
  ASSERT_NE(model, nullptr);
  ASSERT_EQ(model->notes().size(), 1u);
  EXPECT_THAT(model->notes()[0], HasSubstr("rounded 1 weight scales"));
  EXPECT_THAT(model->notes()[0], HasSubstr("1.19e-07"));
}

TEST_F(Load, UnquantisedWeightsMayBeF32) {
  for (const char* name : {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}) {
    edited.tensor(name).widen();
  }
  EXPECT_EQ(logits_of(edited.write()), base_logits());
  edited.tensor("lm_head.weight").set32(9, 0x3f800001);
  const auto model = load_model(edited.write(), options());
  ASSERT_NE(model, nullptr);
  ASSERT_EQ(model->notes().size(), 1u);
  EXPECT_THAT(model->notes()[0], HasSubstr("rounded 1 unquantised weights"));
}

TEST_F(Load, UnquantisedWeightsTooLargeForBf16AreRefused) {
  edited.tensor("lm_head.weight").widen();
  edited.tensor("lm_head.weight").set32(1, 0x7f7fffff);
  expect_error(ErrorCode::kInvalidData, {"lm_head.weight"});
}

TEST_F(Load, ExpertsOfALayerMustAgree) {
  ignore().push_back("re:.*layers.1.mlp.experts.3..*");
  for (const char* part : {"gate_proj", "up_proj", "down_proj"}) {
    const bool down = std::string(part) == "down_proj";
    edited.tensors[fmt::format("model.layers.1.mlp.experts.3.{}.weight", part)] =
        EditedTensor::zeros(down ? std::vector<int64_t>{128, 192} : std::vector<int64_t>{192, 128});
  }
  expect_error(ErrorCode::kUnsupported,
               {"experts of a layer", "experts.0.gate_proj", "experts.3.gate_proj", "re:.*layers.1.mlp.experts.3"});
}

TEST_F(Load, GateAndUpMustAgree) {
  ignore().push_back("re:.*up_proj$");
  for (int l = 0; l < 2; ++l) {
    for (int e = 0; e < 6; ++e) {
      edited.tensors[fmt::format("model.layers.{}.mlp.experts.{}.up_proj.weight", l, e)] =
          EditedTensor::zeros({192, 128});
    }
  }
  expect_error(ErrorCode::kUnsupported, {"gate and up", "gate_proj", "up_proj"});
}

TEST_F(Load, ConfigThatCallsQuantisedWeightsPlain) {
  ignore().push_back("model.layers.0.self_attn.v_proj");
  expect_error(ErrorCode::kInvalidData, {"v_proj.weight", "v_proj.weight_packed", "ignore"});
}

TEST_F(Load, AQuantisedRouterIsRefused) {
  formats::Json without = formats::Json::array({"lm_head"});
  ignore() = without;
  for (int l = 0; l < 2; ++l) {
    const std::string gate = fmt::format("model.layers.{}.mlp.gate", l);
    edited.tensors[gate + ".weight_packed"] = {formats::DType::kI32, {6, 16}, std::vector<std::byte>(6 * 16 * 4)};
    edited.tensors[gate + ".weight_scale"] = EditedTensor::zeros({6, 2});
  }
  // Six rows are no multiple of 8: that is the first rule it breaks.
  expect_error(ErrorCode::kUnsupported, {"mlp.gate", "n = 6"});
}

TEST_F(Load, WeightOnlyNeedsItsOption) {
  group()["input_activations"] = nullptr;
  expect_error(ErrorCode::kUnsupported, {"W4A16", "--activations fp8", "self_attn.q_proj"});
  model::LoadOptions fp8 = options();
  fp8.run_weight_only_as_fp8 = true;
  EXPECT_EQ(logits_of(edited.write(), fp8), base_logits());
}

TEST_F(Load, CodesOutsideFourBitsAreRefused) {
  group()["format"] = "int-quantized";
  edited.config["quantization_config"]["format"] = "int-quantized";
  std::vector<std::pair<std::string, EditedTensor>> plain;
  for (const auto& [name, tensor] : edited.tensors) {
    if (!name.ends_with(".weight_packed")) continue;
    EditedTensor bytes{formats::DType::kI8, {tensor.shape[0], tensor.shape[1] * 8}, {}};
    for (const std::byte pair : tensor.bytes) {
      bytes.bytes.push_back(std::byte(static_cast<uint8_t>((static_cast<int>(pair) & 15) - 8)));
      bytes.bytes.push_back(std::byte(static_cast<uint8_t>((static_cast<int>(pair) >> 4) - 8)));
    }
    plain.emplace_back(name.substr(0, name.size() - 7), std::move(bytes));
  }
  for (auto& [name, tensor] : plain) edited.tensors[name] = std::move(tensor);
  EXPECT_EQ(logits_of(edited.write()), base_logits()) << "one byte a code is the same model";
  edited.tensor("model.layers.1.mlp.experts.5.up_proj.weight").bytes[130] = std::byte{8};
  expect_error(ErrorCode::kInvalidData, {"experts.5.up_proj.weight", "row 1, column 2", "-8..7"});
}

TEST_F(Load, FusedExpertsAreRefused) {
  edited.tensors["model.layers.0.mlp.experts.gate_up_proj"] = EditedTensor::zeros({6, 384, 128});
  expect_error(ErrorCode::kUnsupported, {"mlp.experts.gate_up_proj"});
}

TEST_F(Load, TensorsOfNoLayerAreLeftAloneWithANote) {
  edited.tensors["model.layers.2.mlp.experts.0.gate_proj.weight"] = EditedTensor::zeros({3, 3});
  edited.tensors["mtp.0.head.weight"] = EditedTensor::zeros({3});
  std::string note;
  model::LoadOptions with = options();
  with.log = [&](LogLevel, std::string_view text) { note += text; };
  EXPECT_EQ(logits_of(edited.write(), with), base_logits());
  EXPECT_THAT(note, HasSubstr("2 tensors"));
}

TEST_F(Load, TiedEmbeddingsEqualACopy) {
  edited.tensor("lm_head.weight") = edited.tensor("model.embed_tokens.weight");
  const std::vector<float> copied = logits_of(edited.write());
  edited.tensors.erase("lm_head.weight");
  edited.config["tie_word_embeddings"] = true;
  EXPECT_EQ(logits_of(edited.write()), copied);
  edited.config["tie_word_embeddings"] = false;
  expect_error(ErrorCode::kNotFound, {"lm_head.weight"});
}

TEST_F(Load, ProgressRisesToTheTotal) {
  std::vector<model::LoadProgress> seen;
  model::LoadOptions with = options();
  with.progress = [&](const model::LoadProgress& progress) { seen.push_back(progress); };
  ASSERT_NE(load_model(edited.write(), with), nullptr);
  ASSERT_GT(seen.size(), 4u);
  for (size_t i = 1; i < seen.size(); ++i) {
    EXPECT_GE(seen[i].modules_done, seen[i - 1].modules_done);
    EXPECT_GE(seen[i].bytes_done, seen[i - 1].bytes_done);
  }
  EXPECT_EQ(seen.back().modules_done, seen.back().modules_total);
  EXPECT_EQ(seen.back().bytes_done, seen.back().bytes_total);
}

TEST_F(Load, Cancels) {
  std::atomic<bool> cancel{false};
  model::LoadOptions with = options();
  with.cancel = &cancel;
  with.progress = [&](const model::LoadProgress& progress) { cancel = progress.modules_done > 5; };
  expect_error(ErrorCode::kCancelled, {"stopped after"}, with);
}

TEST_F(Load, AFileThatShrinksOnTheWayIsAnError) {
  const std::string folder = edited.write();
  bool shrunk = false;
  model::LoadOptions with = options();
  with.progress = [&](const model::LoadProgress& progress) {
    if (shrunk || progress.modules_done < 3) return;
    shrunk = true;
    std::filesystem::resize_file(folder + "/model.safetensors", 200'000);
  };
  const auto model = model::Model::load(folder, with);
  EXPECT_TRUE(shrunk);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code, ErrorCode::kInvalidData) << model.error().message;
  EXPECT_THAT(model.error().message, HasSubstr("model.safetensors"));
}

TEST_F(Load, AbsurdConfigsAreErrors) {
  const formats::Json saved = edited.config;
  edited.write();
  for (const char* key : {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                          "vocab_size", "max_position_embeddings", "num_experts", "num_experts_per_tok",
                          "intermediate_size", "rms_norm_eps", "rope_theta", "head_dim"}) {
    for (const formats::Json& value : std::vector<formats::Json>{0, -1, 1'000'000'007, 9'223'372'036'854'775'807, 1e300,
                                                                 "many", formats::Json::array(), true}) {
      edited.config = saved;
      edited.config[key] = value;
      const auto model = model::Model::load(edited.write(), options());
      // Legal: any base of the rotation, and more positions than the cache has.
      const std::string name = key;
      if (name == "rope_theta" && value.is_number() && value > 0 && value < 1e12) continue;
      if (name == "max_position_embeddings" && value == 1'000'000'007) continue;
      EXPECT_FALSE(model.ok()) << key << " = " << value.dump();
    }
  }
  for (const int64_t layers : {1, 3, 9999}) {
    edited.config = saved;
    edited.config["num_hidden_layers"] = layers;
    EXPECT_EQ(model::Model::load(edited.write(), options()).ok(), layers == 1) << "a layer less is a smaller model";
  }
}

TEST_F(Load, TheCacheHasTheSizeThatWasAsked) {
  model::LoadOptions with = options();
  const std::string folder = data_path(kBase);
  with.cache_pages = 3;
  EXPECT_EQ(load_model(folder, with)->num_pages(), 3);
  with.cache_pages = 0;
  with.cache_bytes = 1 << 20;
  const auto by_bytes = load_model(folder, with);
  const uint64_t page = 2 * 2 * 2 * 32 * 64 * 2;  // keys and values, layers, kv heads, head_dim, positions, bf16
  EXPECT_EQ(by_bytes->num_pages(), static_cast<int64_t>((1 << 20) / page));
  EXPECT_EQ(by_bytes->memory().cache_bytes, page * by_bytes->num_pages());
  with.cache_bytes = 100;
  EXPECT_EQ(model::Model::load(folder, with).error().code, ErrorCode::kCapacity);
  with.cache_bytes = 0;
  EXPECT_EQ(load_model(folder, with)->num_pages(), 8) << "512 positions of the model";
  with.cache_pages = int64_t{1} << 60;
  EXPECT_EQ(model::Model::load(folder, with).error().code, ErrorCode::kCapacity);
}

}  // namespace
}  // namespace quadrille::testing
