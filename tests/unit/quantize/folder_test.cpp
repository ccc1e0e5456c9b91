// SPDX-License-Identifier: Apache-2.0
#include "quantize/folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "formats/checkpoint.h"
#include "formats/compressed_tensors.h"
#include "formats/json.h"
#include "support/golden.h"
#include "unit/quantize/small_model.h"

namespace quadrille::quantize {
namespace {

namespace fs = std::filesystem;
using formats::Checkpoint;
using formats::DType;
using formats::Json;
using quadrille::testing::read_bytes;
using quadrille::testing::ScratchFolder;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::small_shapes;
using testing::write_model;

QuantizeOptions options_of(int64_t group_size, Quotient quotient = Quotient::kF32) {
  QuantizeOptions options;
  options.group_size = group_size;
  options.quotient = quotient;
  options.threads = 2;
  return options;
}

class QuantizeFolder : public ::testing::Test {
 protected:
  std::string error_of(const QuantizeOptions& options) {
    const auto report = quantize_folder(folder_.file("in"), folder_.file("out"), options);
    if (report) return "no error";
    EXPECT_FALSE(fs::exists(folder_.file("out")));
    EXPECT_FALSE(fs::exists(folder_.file("out.partial")));
    return report.error().message;
  }
  ScratchFolder folder_;
};

TEST_F(QuantizeFolder, WritesWhatLoadersRead) {
  const std::string in = write_model(folder_, "in", small_shapes());
  const std::string out = folder_.file("out");
  QuantizeProgress last;
  int calls = 0;
  const auto report = quantize_folder(in, out + "/", options_of(32), [&](const QuantizeProgress& progress) {
    EXPECT_GE(progress.bytes_done, last.bytes_done);
    last = progress;
    ++calls;
  });
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(last.bytes_done, last.bytes_total);
  EXPECT_EQ(last.tensors_total, 12);
  EXPECT_GE(calls, 12);

  const auto checkpoint = Checkpoint::open(out);
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  const auto input = Checkpoint::open(in);
  ASSERT_TRUE(input);
  int quantized = 0;
  for (const auto& [name, source] : input->tensors()) {
    const formats::TensorView* copy = checkpoint->find(name);
    if (copy != nullptr) {
      ASSERT_EQ(copy->bytes.size(), source.bytes.size()) << name;
      EXPECT_EQ(std::memcmp(copy->bytes.data(), source.bytes.data(), copy->bytes.size()), 0) << name;
      continue;
    }
    ++quantized;
    const std::string module = name.substr(0, name.size() - 7);
    const auto expected = quantize_tensor(source.bytes, source.dtype, source.shape, 32, Quotient::kF32);
    ASSERT_TRUE(expected);
    const formats::TensorView* packed = checkpoint->find(module + ".weight_packed");
    const formats::TensorView* scale = checkpoint->find(module + ".weight_scale");
    const formats::TensorView* shape = checkpoint->find(module + ".weight_shape");
    ASSERT_TRUE(packed != nullptr && scale != nullptr && shape != nullptr) << module;
    EXPECT_EQ(packed->dtype, DType::kI32);
    EXPECT_THAT(packed->shape, ElementsAre(source.shape[0], source.shape[1] / 8));
    EXPECT_EQ(std::memcmp(packed->bytes.data(), expected->packed.data(), packed->bytes.size()), 0);
    EXPECT_EQ(scale->dtype, DType::kBF16);
    EXPECT_THAT(scale->shape, ElementsAre(source.shape[0], source.shape[1] / 32));
    EXPECT_EQ(std::memcmp(scale->bytes.data(), expected->scales.data(), scale->bytes.size()), 0);
    EXPECT_EQ(std::memcmp(shape->bytes.data(), source.shape.data(), 16), 0);
  }
  EXPECT_EQ(quantized, 4);
  EXPECT_EQ(report->errors.tensors.size(), 4u);
  EXPECT_GT(report->errors.total().relative_rms(), 0.0);
  EXPECT_EQ(report->bytes_out, checkpoint->total_bytes());

  EXPECT_EQ(read_bytes(out + "/tokenizer.json"), "{\"a\": 1}\n");
  EXPECT_EQ(read_bytes(out + "/chat_template.jinja"), "{{ x }}\n");
  EXPECT_THAT(report->files, ElementsAre("chat_template.jinja", "config.json", "generation_config.json",
                                         "model.safetensors", "tokenizer.json"));
  size_t entries = 0;
  for (const auto& entry : fs::directory_iterator(out)) {
    EXPECT_THAT(report->files, Contains(entry.path().filename().string()));
    ++entries;
  }
  EXPECT_EQ(entries, report->files.size());
}

TEST_F(QuantizeFolder, TheConfigDecidesLikeTheFile) {
  write_model(folder_, "in", small_shapes());
  QuantizeOptions options = options_of(32);
  options.ignore = {"re:.*self_attn.*"};
  const auto report = quantize_folder(folder_.file("in"), folder_.file("out"), options);
  ASSERT_TRUE(report) << report.error().message;
  const auto json = formats::parse_json_file(folder_.file("out/config.json"));
  ASSERT_TRUE(json);
  EXPECT_EQ((*json)["hidden_size"], 64);
  const Json& quantization = (*json)["quantization_config"];
  EXPECT_EQ(quantization["format"], "pack-quantized");
  EXPECT_EQ(quantization["config_groups"]["group_0"]["format"], "pack-quantized");
  EXPECT_EQ(quantization["quantization_status"], "compressed");
  // What a loader would take for a linear layer is named.
  EXPECT_THAT(quantization["ignore"].get<std::vector<std::string>>(),
              ElementsAre("lm_head", "re:.*mlp.gate$", "re:.*block_sparse_moe.gate$", "re:.*shared_expert_gate$",
                          "re:.*self_attn.*", "model.embed_tokens", "model.layers.0.mlp.router_extra"));
  const auto rules = formats::QuantizationConfig::parse(quantization, "config.json");
  ASSERT_TRUE(rules) << rules.error().message;
  const auto checkpoint = Checkpoint::open(folder_.file("out"));
  ASSERT_TRUE(checkpoint);
  int decided = 0;
  for (const auto& [name, shape] : small_shapes()) {
    if (shape.size() != 2) continue;
    const std::string module = name.substr(0, name.size() - 7);
    const bool is_quantized = rules->decide(module)->kind == formats::QuantizationKind::kW4A8;
    EXPECT_EQ(checkpoint->find(name) == nullptr, is_quantized) << module;
    decided += is_quantized ? 1 : 0;
  }
  EXPECT_EQ(decided, 3);
  EXPECT_THAT(report->left_alone, Contains("model.layers.0.self_attn.q_proj (ignore 're:.*self_attn.*')"));
  EXPECT_THAT(report->left_alone, Contains("lm_head (ignore 'lm_head')"));
}

TEST_F(QuantizeFolder, ThreadsDoNotChangeABit) {
  write_model(folder_, "in", small_shapes());
  QuantizeOptions options = options_of(0);
  options.threads = 1;
  const auto one = quantize_folder(folder_.file("in"), folder_.file("one"), options);
  options.threads = 3;
  const auto three = quantize_folder(folder_.file("in"), folder_.file("three"), options);
  ASSERT_TRUE(one && three);
  EXPECT_EQ(read_bytes(folder_.file("one/model.safetensors")), read_bytes(folder_.file("three/model.safetensors")));
  EXPECT_EQ(one->errors.total().sum_square_error, three->errors.total().sum_square_error);
  EXPECT_EQ(one->errors.tensors.front().name, three->errors.tensors.front().name);
}

TEST_F(QuantizeFolder, ShardsStayShards) {
  write_model(folder_, "in", {});
  fs::remove(folder_.file("in/model.safetensors"));
  testing::Shapes first;
  testing::Shapes second;
  Json map = Json::object();
  int turn = 0;
  for (const auto& [name, shape] : small_shapes()) {
    const bool is_first = ++turn % 2 == 0;
    (is_first ? first : second)[name] = shape;
    map[name] = is_first ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  testing::write_safetensors(folder_.file("in/model-00001-of-00002.safetensors"), first);
  second["stray.weight"] = {4, 4};  // not in the map: not carried over
  testing::write_safetensors(folder_.file("in/model-00002-of-00002.safetensors"), second);
  folder_.write("in/model.safetensors.index.json", Json({{"weight_map", map}}).dump());
  const auto report = quantize_folder(folder_.file("in"), folder_.file("out"), options_of(32));
  ASSERT_TRUE(report) << report.error().message;
  const auto index = formats::parse_json_file(folder_.file("out/model.safetensors.index.json"));
  ASSERT_TRUE(index);
  EXPECT_EQ((*index)["metadata"]["total_size"], report->bytes_out);
  const auto checkpoint = Checkpoint::open(folder_.file("out"));
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->shards().size(), 2u);
  EXPECT_EQ(checkpoint->find("stray.weight"), nullptr);
  EXPECT_EQ(checkpoint->tensors().size(), 12u + 2 * 4);
  EXPECT_EQ(checkpoint->shard_of("model.layers.0.self_attn.q_proj.weight_packed"),
            map["model.layers.0.self_attn.q_proj.weight"].get<std::string>());
}

TEST_F(QuantizeFolder, RefusesBeforeAnythingIsWritten) {
  write_model(folder_, "in", small_shapes());
  const std::string message = error_of(options_of(64));
  EXPECT_THAT(message, HasSubstr("tensor 'model.layers.0.mlp.experts.0.down_proj.weight'"));
  EXPECT_THAT(message, HasSubstr("group size 64 does not divide K = 96; legal here: 32, channel"));
  EXPECT_THAT(error_of(options_of(48)), HasSubstr("expected 32, 64, 128 or channel"));
  QuantizeOptions options = options_of(32);
  options.ignore = {"re:["};
  EXPECT_THAT(error_of(options), HasSubstr("--ignore"));
  options.ignore = {"Linear"};
  EXPECT_THAT(error_of(options), HasSubstr("no linear layer to quantise"));
}

TEST_F(QuantizeFolder, RefusesOtherInputs) {
  EXPECT_THAT(error_of(options_of(32)), HasSubstr("config.json"));
  write_model(folder_, "in", small_shapes());
  folder_.write("in/config.json", R"({"quantization_config":{"quant_method":"gptq"}})");
  EXPECT_THAT(error_of(options_of(32)), HasSubstr("quantised already"));
  folder_.write("in/config.json", "[]");
  EXPECT_THAT(error_of(options_of(32)), HasSubstr("JSON object"));
  write_model(folder_, "in", {{"model.layers.0.mlp.experts.gate_up_proj", {2, 8, 8}}});
  EXPECT_THAT(error_of(options_of(32)), HasSubstr("all experts in one tensor [2, 8, 8]"));
  write_model(folder_, "in", {{"model.layers.0.mlp.experts.0.up_proj.weight_packed", {2, 8}}});
  EXPECT_THAT(error_of(options_of(32)), HasSubstr("quantised already"));
  fs::remove(folder_.file("in/model.safetensors"));
  EXPECT_THAT(error_of(options_of(32)), HasSubstr("found neither"));
}

TEST_F(QuantizeFolder, NamesAWeightThatIsNotFinite) {
  const std::string name = "model.layers.0.mlp.experts.0.up_proj.weight";
  std::string bytes = testing::bf16_bytes(name, 96 * 64);
  const uint16_t nan = 0x7fc0;
  std::memcpy(bytes.data() + 2 * (64 * 40 + 7), &nan, 2);
  std::memcpy(bytes.data() + 2 * (64 * 90 + 1), &nan, 2);
  write_model(folder_, "in", small_shapes(), {{name, bytes}});
  const std::string message = error_of(options_of(32));
  EXPECT_THAT(message, HasSubstr(name));
  EXPECT_THAT(message, HasSubstr("element [40, 7]"));
}

TEST_F(QuantizeFolder, NeverTouchesAFolderThatIsThere) {
  write_model(folder_, "in", small_shapes());
  folder_.write("out/precious", "x");
  const auto report = quantize_folder(folder_.file("in"), folder_.file("out"), options_of(32));
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(report.error().message, HasSubstr("exists already"));
  EXPECT_EQ(read_bytes(folder_.file("out/precious")), "x");
  fs::remove_all(folder_.file("out"));
  // A folder of somebody else under the temporary name.
  folder_.write("out.partial/precious", "x");
  EXPECT_THAT(quantize_folder(folder_.file("in"), folder_.file("out"), options_of(32)).error().message,
              HasSubstr("no leftover"));
  EXPECT_EQ(read_bytes(folder_.file("out.partial/precious")), "x");
  EXPECT_FALSE(quantize_folder(folder_.file("in"), folder_.file("no/such/out"), options_of(32)));
}

TEST_F(QuantizeFolder, StopsWhenAsked) {
  write_model(folder_, "in", small_shapes());
  std::atomic<bool> cancel{false};
  const auto report = quantize_folder(
      folder_.file("in"), folder_.file("out"), options_of(32),
      [&](const QuantizeProgress& progress) { cancel = progress.tensors_done >= 3; }, &cancel);
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().code, ErrorCode::kCancelled);
  EXPECT_FALSE(fs::exists(folder_.file("out")));
  EXPECT_FALSE(fs::exists(folder_.file("out.partial")));
}

TEST(QuantizableName, IsDecidedByData) {
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.weight", "model.layers.11.mlp.experts.5.down_proj.weight",
        "model.layers.0.block_sparse_moe.experts.7.w3.weight", "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.layers.0.mlp.shared_expert.gate_proj.weight"})
    EXPECT_TRUE(is_quantizable_name(name)) << name;
  for (const char* name :
       {"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.gate.weight",
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight", "visual.q_proj.weight",
        "model.layers.0.w1.weight", "model.layers.0.mlp.experts.gate_up_proj", "model.layers.x.q_proj.weight",
        "q_proj.weight", "weight", ""})
    EXPECT_FALSE(is_quantizable_name(name)) << name;
}

struct Variant {
  const char* model;
  const char* variant;
  int64_t group_size;
};

// The library's folder from the library's input: every tensor bit for bit.
class GoldenFolder : public ::testing::TestWithParam<Variant> {};

TEST_P(GoldenFolder, ReproducesTheLibrarysBytes) {
  const auto golden = quadrille::testing::golden_path(std::string("models/") + GetParam().model);
  if (!golden) GTEST_SKIP() << quadrille::testing::kNoGolden;
  const ScratchFolder folder;
  const auto report =
      quantize_folder(*golden + "/bf16", folder.file("out"), options_of(GetParam().group_size, Quotient::kBf16));
  ASSERT_TRUE(report) << report.error().message;
  const auto ours = Checkpoint::open(folder.file("out"));
  const auto theirs = Checkpoint::open(*golden + "/" + GetParam().variant);
  ASSERT_TRUE(ours) << ours.error().message;
  ASSERT_TRUE(theirs) << theirs.error().message;
  EXPECT_EQ(ours->names(), theirs->names());
  for (const auto& [name, expected] : theirs->tensors()) {
    const formats::TensorView* found = ours->find(name);
    if (found == nullptr) continue;
    EXPECT_EQ(found->dtype, expected.dtype) << name;
    EXPECT_EQ(found->shape, expected.shape) << name;
    ASSERT_EQ(found->bytes.size(), expected.bytes.size()) << name;
    EXPECT_EQ(std::memcmp(found->bytes.data(), expected.bytes.data(), expected.bytes.size()), 0) << name;
  }
  // One shard against one shard: the whole file.
  if (!ours->is_sharded()) {
    EXPECT_TRUE(read_bytes(folder.file("out/model.safetensors")) ==
                read_bytes(*golden + "/" + GetParam().variant + "/model.safetensors"));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenFolder,
                         ::testing::Values(Variant{"olmoe", "w4a8-g128", 128}, Variant{"mixtral", "w4a8-g128", 128},
                                           Variant{"qwen3_moe", "w4a8-g128", 128}, Variant{"qwen3_moe", "w4a8-g64", 64},
                                           Variant{"qwen3_moe", "w4a8-g32", 32},
                                           Variant{"qwen3_moe", "w4a8-channel", 0},
                                           Variant{"qwen2_moe", "w4a8-g64", 64}, Variant{"olmoe_clip", "w4a8-g64", 64},
                                           Variant{"deepseek_v2", "w4a8-g64", 64},
                                           Variant{"deepseek_v3", "w4a8-g64", 64},
                                           Variant{"glm4_moe", "w4a8-g128", 128}),
                         [](const auto& test) {
                           std::string name = std::string(test.param.model) + "_" + test.param.variant;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(GoldenFolderLimits, AWidthThatTheGroupDoesNotDivideIsNamed) {
  const auto golden = quadrille::testing::golden_path("models/qwen2_moe/bf16");
  if (!golden) GTEST_SKIP() << quadrille::testing::kNoGolden;
  const ScratchFolder folder;
  const auto report = quantize_folder(*golden, folder.file("out"), options_of(128));
  ASSERT_FALSE(report);
  EXPECT_THAT(report.error().message, HasSubstr("K = 192"));
  EXPECT_THAT(report.error().message, HasSubstr("down_proj"));
}

}  // namespace
}  // namespace quadrille::quantize
