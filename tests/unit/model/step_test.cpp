// SPDX-License-Identifier: Apache-2.0
// Steps that break the rules of forward.h are errors; the sliding window cuts where it says; random models run on every
// table, are the same for the same seed, and say how large they are; inspect's description adds up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "edited_model.h"
#include "golden_model.h"
#include "kernels/api/registry.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

model::LoadOptions options(const char* table = "generic") {
  return options_of({table, kernels::Numerics::kExact, kernels::Rounding::kBf16});
}

class Steps : public ::testing::Test {
 protected:
  std::unique_ptr<model::Model> model = load_model(data_path("models/olmoe_clip/w4a8-g64"), options());
  std::vector<int32_t> ids = {1, 2, 3}, positions = {0, 1, 0}, sequences = {0, 0, 1}, pages = {4, -1, 7, -1},
                       rows = {1, 2};
  std::vector<float> logits = std::vector<float>(2 * 384);

  void expect_error(const std::string& word) {
    const Status status = model->run({ids, positions, sequences, pages, 2, rows}, logits);
    ASSERT_FALSE(status.ok()) << word;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message, HasSubstr(word));
  }
};

TEST_F(Steps, AGoodOneRuns) {
  EXPECT_TRUE(model->run({ids, positions, sequences, pages, 2, rows}, logits).ok());
  EXPECT_TRUE(model->run({ids, positions, sequences, pages, 2, {}}, {}).ok()) << "without logits";
  EXPECT_TRUE(model->run({}, {}).ok()) << "nothing to do";
}

TEST_F(Steps, IdsOutsideTheVocabulary) {
  ids[1] = 384;
  expect_error("id 384; legal are 0 to 383");
  ids[1] = -1;
  expect_error("id -1");
}

TEST_F(Steps, PositionsOutOfRangeOrOrder) {
  positions[1] = 512;
  expect_error("position 512; legal are 0 to 511");
  positions[1] = -3;
  expect_error("position -3");
  positions = {1, 1, 0};
  expect_error("position 1 of sequence 0 behind position 1");
}

TEST_F(Steps, PagesOutOfRange) {
  positions[1] = 64;
  expect_error("page -1 for positions from 64");
  positions[1] = 128;
  expect_error("needs 3 pages; the table has 2");
  positions[1] = 1;
  pages[0] = 32;
  expect_error("legal are 0 to 31");
}

TEST_F(Steps, SequencesAndLengths) {
  sequences[2] = 2;
  expect_error("sequence 2; the page table has 2");
  sequences.pop_back();
  expect_error("expected as many of each");
}

TEST_F(Steps, LogitRows) {
  rows = {2, 1};
  expect_error("ascending rows");
  rows = {1, 3};
  expect_error("ascending rows");
  rows = {0, 1, 2};
  expect_error("room for 768 logits");
}

TEST_F(Steps, ACancelledStepSaysSo) {
  std::atomic<bool> cancel{false};
  model::LoadOptions with = options();
  with.cancel = &cancel;
  model = load_model(data_path("models/olmoe_clip/w4a8-g64"), with);
  cancel = true;
  EXPECT_EQ(model->run({ids, positions, sequences, pages, 2, rows}, logits).error().code, ErrorCode::kCancelled);
  cancel = false;
  EXPECT_TRUE(model->run({ids, positions, sequences, pages, 2, rows}, logits).ok());
}

TEST(Blocks, ArgumentsAreChecked) {
  const auto model = load_model(data_path("models/olmoe_clip/w4a8-g64"), options());
  std::vector<float> x(2 * 128), out(2 * 128);
  EXPECT_TRUE(model->run_moe_block(1, x, 2, out).ok());
  EXPECT_FALSE(model->run_moe_block(2, x, 2, out).ok());
  EXPECT_FALSE(model->run_moe_block(0, x, 3, out).ok());
}

// With a window of w, only the last w keys count: a model with one layer gives the same logits for two prompts that
// differ before the window, and others without the window.
TEST(Window, CutsWhatLiesBefore) {
  EditedModel edited(data_path("models/qwen2_moe/w4a8-g64"));
  edited.config["num_hidden_layers"] = 1;
  edited.config["mlp_only_layers"] = formats::Json::array();
  edited.config["sliding_window"] = 5;
  edited.config["max_window_layers"] = 3;
  std::vector<int32_t> first, second;
  for (int32_t i = 0; i < 80; ++i) {
    first.push_back((i * 37 + 11) % 640);
    second.push_back(i < 70 ? (i * 53 + 7) % 640 : first.back());
  }
  for (const bool windowed : {false, true}) {
    edited.config["use_sliding_window"] = windowed;
    const std::string folder = edited.write();
    for (const kernels::KernelTable* table : kernels::all_tables()) {
      if (!table_unavailable(table->name).empty()) continue;
      const auto model = load_model(folder, options(table->name));
      ASSERT_NE(model, nullptr);
      EXPECT_EQ(model->config().layers[0].window, windowed ? 5 : 0);
      const auto logits = run_sequences(*model, {first, second});
      const auto equal = [&](int64_t row) {
        return std::equal(logits[0].row(row), logits[0].row(row) + 640, logits[1].row(row));
      };
      EXPECT_EQ(equal(79), windowed) << table->name;
      EXPECT_EQ(equal(74), windowed) << table->name << ": keys 70 to 74";
      EXPECT_FALSE(equal(73)) << table->name << ": key 69 still counts";
    }
  }
}

model::ModelConfig random_config() {
  const auto json = formats::parse_json(R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
      "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
      "vocab_size": 500, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "num_experts": 60,
      "num_experts_per_tok": 4, "moe_intermediate_size": 128, "norm_topk_prob": true})",
                                        "inline");
  const auto raw = formats::parse_hf_config(*json, "inline");
  const auto config = model::make_model_config(*raw);
  EXPECT_TRUE(config.ok()) << (config.ok() ? "" : config.error().message);
  return *config;
}

std::vector<float> random_logits(const model::RandomModel& random, const model::LoadOptions& with) {
  const auto model = model::Model::random(random_config(), random, with);
  EXPECT_TRUE(model.ok()) << (model.ok() ? "" : model.error().message);
  return run_sequences(**model, {{1, 7, 300, 42, 499}})[0].values;
}

TEST(RandomModel, IsItsSeed) {
  const auto first = random_logits({}, options());
  EXPECT_EQ(random_logits({}, options()), first);
  ThreadPool one(1);
  model::LoadOptions with = options();
  with.pool = &one;
  EXPECT_EQ(random_logits({}, with), first) << "threads change nothing";
  model::RandomModel other;
  other.seed = 2;
  EXPECT_NE(random_logits(other, options()), first);
  // Scales keep activations near 1, so that the logits of a head with deviation 1 / sqrt(hidden) do, too.
  const double size = row_rms(first.data(), static_cast<int64_t>(first.size()));
  EXPECT_GT(size, 0.5);
  EXPECT_LT(size, 2.0);
}

TEST(RandomModel, RunsOnEveryTableInBothNumerics) {
  for (const kernels::KernelTable* table : kernels::all_tables()) {
    if (!table_unavailable(table->name).empty()) continue;
    for (const auto numerics : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
      model::LoadOptions with = options(table->name);
      with.numerics = numerics;
      for (const float v : random_logits({32, 3, false}, with)) ASSERT_TRUE(std::isfinite(v)) << table->name;
    }
  }
}

TEST(RandomModel, SaysHowLargeItIs) {
  const auto model = model::Model::random(random_config(), {128, 1, true}, options());
  ASSERT_TRUE(model.ok());
  const model::MemoryUse use = (*model)->memory();
  // Codes at half a byte and one bf16 scale in 128, gate, up and down of 60 experts in 2 layers.
  const uint64_t weights = 2 * 60 * 3 * 128 * 256;
  EXPECT_EQ(use.expert_bytes, weights / 2 + weights / 128 * 2);
  const uint64_t lm_head = 512 * 256 * 2, embedding = 500 * 256 * 2;  // the head's rows padded to 16
  EXPECT_GT(use.weight_bytes, use.expert_bytes + lm_head + embedding);
  EXPECT_EQ(use.bytes_read_per_token, use.weight_bytes - embedding - use.expert_bytes + use.expert_bytes / 60 * 4);
}

TEST(RandomModel, ShapesThatDoNotRunAreErrors) {
  model::ModelConfig config = random_config();
  config.expert_width = 96;
  const auto model = model::Model::random(config, {128, 1, true}, options());
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code, ErrorCode::kUnsupported) << model.error().message;
}

TEST(Describe, AddsUp) {
  const auto description = model::describe_model(data_path("models/qwen2_moe/w4a8-g64"));
  ASSERT_TRUE(description.ok()) << description.error().message;
  EXPECT_EQ(description->config.family, "qwen2_moe");
  EXPECT_EQ(description->quantization_format, "pack-quantized");
  EXPECT_TRUE(description->unused_tensors.empty());
  // Embedding and head; per layer q, k, v with biases and o, two norms; two MoE layers with router, six experts, shared
  // expert and its gate; one dense layer; the last norm.
  const int64_t attention = 128 * 128 + 128 + 2 * (64 * 128 + 64) + 128 * 128 + 2 * 128;
  const int64_t expert = 3 * 128 * 192, shared = 3 * 128 * 256 + 128, dense = 3 * 128 * 320;
  const int64_t moe = 6 * 128 + 6 * expert + shared;
  EXPECT_EQ(description->parameters, 2 * 640 * 128 + 3 * attention + 2 * moe + dense + 128);
  EXPECT_EQ(description->active_parameters,
            640 * 128 + 3 * attention + 2 * (6 * 128 + 2 * expert + shared) + dense + 128);
  EXPECT_EQ(description->kv_bytes_per_position, 2u * 3 * 64 * 2);
  uint64_t bytes = 0;
  bool found = false;
  for (const auto& module : description->modules) {
    bytes += module.disk_bytes;
    if (module.path == "model.layers.2.mlp.experts.5.down_proj") {
      found = true;
      EXPECT_EQ(module.kind, "expert");
      EXPECT_EQ(module.decision.group_size, 64);
      EXPECT_THAT(module.decision.rule, HasSubstr("Linear"));
      EXPECT_EQ(module.storage, "I32 pack-quantized");
      EXPECT_EQ(module.disk_bytes, 128u * 192 / 2 + 128 * 3 * 2);
    }
    if (module.path == "model.layers.2.mlp.gate") {
      EXPECT_THAT(module.decision.rule, HasSubstr("ignore"));
      EXPECT_EQ(module.storage, "BF16");
    }
  }
  EXPECT_TRUE(found);
  EXPECT_EQ(bytes, description->disk_bytes);
  ASSERT_EQ(description->tensor_parallel.size(), 8u);
  EXPECT_TRUE(description->tensor_parallel[3].legal) << "three groups of 64 over four ranks";
  EXPECT_FALSE(description->tensor_parallel[4].legal) << "four query heads";

  // What inspect promises is what the loader takes.
  model::LoadOptions with = options();
  const auto model = load_model(description->folder, with);
  EXPECT_EQ(model->memory().weight_bytes, description->weight_memory_bytes);
}

}  // namespace
}  // namespace quadrille::testing
