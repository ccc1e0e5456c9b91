// SPDX-License-Identifier: Apache-2.0
// Folders of random weights: read back by the loader, the same for the same seed at any number of threads, in files of
// the size that was asked for, and nothing left of one that was not finished.
#include "model/random_folder.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "formats/hf_config.h"
#include "golden_model.h"
#include "model/inventory.h"
#include "support/scratch_folder.h"

namespace quadrille::testing {
namespace {

namespace fs = std::filesystem;
using namespace model;  // NOLINT: the subject
using ::testing::HasSubstr;

formats::Json small_qwen3() {
  return *formats::parse_json(R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
      "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
      "vocab_size": 512, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu",
      "rope_theta": 1000000.0, "tie_word_embeddings": false, "intermediate_size": 256, "moe_intermediate_size": 64,
      "num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": true, "decoder_sparse_step": 1,
      "mlp_only_layers": [1], "attention_bias": true, "eos_token_id": 511})",
                              "small");
}

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = read_bytes(entry.path().string());
  }
  return files;
}

class RandomFolder : public ::testing::Test {
 protected:
  RandomFolderOptions options(uint64_t seed = 7) {
    RandomFolderOptions options;
    options.seed = seed;
    options.group_size = 32;
    options.shard_bytes = 128 << 10;
    options.pool = &pool;
    return options;
  }

  ThreadPool pool{2, ThreadPool::Start::kAll};
  ScratchFolder scratch;
};

TEST_F(RandomFolder, LoadsAndAnswersWithNumbers) {
  const std::string out = scratch.file("model");
  const auto report = write_random_folder(small_qwen3(), "small", out, options());
  ASSERT_TRUE(report.ok()) << report.error().message;
  const ModelConfig config = *read_model_config(out);
  const auto inventory = take_inventory(out, *formats::read_hf_config(out), config, no_log());
  ASSERT_TRUE(inventory.ok()) << inventory.error().message;
  EXPECT_TRUE(inventory->unused_tensors.empty());
  EXPECT_GT(inventory->checkpoint.shards().size(), 2u);
  EXPECT_TRUE(inventory->layers[0].experts[7].down.quantised());
  EXPECT_TRUE(inventory->layers[1].dense->gate.quantised());
  EXPECT_TRUE(inventory->layers[0].o.quantised());
  EXPECT_FALSE(inventory->layers[0].router->quantised());
  EXPECT_FALSE(inventory->lm_head->quantised());
  uint64_t bytes = 0;
  for (const ModuleSource* module : inventory->modules()) {
    bytes += module->disk_bytes() + (module->quantised() ? 16 : 0);  // weight_shape is no module's
  }
  EXPECT_EQ(report->bytes, bytes);

  LoadOptions load;
  load.pool = &pool;
  const auto model = load_model(out, load);
  ASSERT_NE(model, nullptr);
  const Tensor logits = run_sequences(*model, {{5, 300, 17, 2, 501}})[0];
  double square = 0;
  for (const float value : logits.values) {
    ASSERT_TRUE(std::isfinite(value));
    square += static_cast<double>(value) * value;
  }
  EXPECT_GT(square / static_cast<double>(logits.values.size()), 0.1);
  EXPECT_LT(square / static_cast<double>(logits.values.size()), 10);
}

TEST_F(RandomFolder, ComesBackFromItsSeed) {
  const auto first = write_random_folder(small_qwen3(), "small", scratch.file("a"), options());
  ASSERT_TRUE(first.ok()) << first.error().message;
  ThreadPool many(5, ThreadPool::Start::kAll);
  RandomFolderOptions again = options();
  again.pool = &many;
  ASSERT_TRUE(write_random_folder(small_qwen3(), "small", scratch.file("b"), again).ok());
  ASSERT_TRUE(write_random_folder(small_qwen3(), "small", scratch.file("c"), options(8)).ok());
  const auto a = files_of(scratch.file("a"));
  EXPECT_EQ(a, files_of(scratch.file("b")));
  EXPECT_NE(a, files_of(scratch.file("c")));
  std::vector<std::string> names;
  for (const auto& [name, text] : a) names.push_back(name);
  EXPECT_EQ(names, first->files);
}

TEST_F(RandomFolder, CutsFilesWhereTheyAreFull) {
  RandomFolderOptions whole = options();
  whole.shard_bytes = uint64_t{1} << 30;
  const auto one = write_random_folder(small_qwen3(), "small", scratch.file("one"), whole);
  ASSERT_TRUE(one.ok()) << one.error().message;
  EXPECT_EQ(one->files, (std::vector<std::string>{"config.json", "model.safetensors"}));
  const auto many = write_random_folder(small_qwen3(), "small", scratch.file("many"), options());
  ASSERT_TRUE(many.ok()) << many.error().message;
  EXPECT_EQ(many->bytes, one->bytes);
  for (const std::string& file : many->files) {
    if (!file.ends_with(".safetensors")) continue;
    // Headers, and the embedding that is larger than a file.
    EXPECT_LE(fs::file_size(scratch.file("many/" + file)), (128u << 10) + (24u << 10)) << file;
  }
}

TEST_F(RandomFolder, RefusesWhatItCannotWrite) {
  ASSERT_TRUE(write_random_folder(small_qwen3(), "small", scratch.file("model"), options()).ok());
  const auto before = files_of(scratch.file("model"));
  const auto again = write_random_folder(small_qwen3(), "small", scratch.file("model"), options(9));
  ASSERT_FALSE(again.ok());
  EXPECT_THAT(again.error().message, HasSubstr("exists already"));
  EXPECT_EQ(files_of(scratch.file("model")), before);

  RandomFolderOptions odd = options();
  odd.group_size = 128;  // the experts' down_proj has 64 columns
  const auto grouped = write_random_folder(small_qwen3(), "small", scratch.file("odd"), odd);
  ASSERT_FALSE(grouped.ok());
  EXPECT_THAT(grouped.error().message, HasSubstr("down_proj"));
  formats::Json quantised = small_qwen3();
  quantised["quantization_config"] = {{"quant_method", "compressed-tensors"}};
  EXPECT_FALSE(write_random_folder(quantised, "small", scratch.file("odd"), options()).ok());
  EXPECT_FALSE(fs::exists(scratch.file("odd")));
  EXPECT_FALSE(fs::exists(scratch.file("odd.partial")));
}

TEST_F(RandomFolder, LeavesNothingWhenItIsStopped) {
  std::atomic<bool> cancel{false};
  RandomFolderOptions stopped = options();
  stopped.cancel = &cancel;
  stopped.progress = [&](uint64_t, uint64_t, const std::string&) { cancel.store(true); };
  const auto report = write_random_folder(small_qwen3(), "small", scratch.file("model"), stopped);
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

}  // namespace
}  // namespace quadrille::testing
