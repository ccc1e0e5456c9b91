// SPDX-License-Identifier: Apache-2.0
// A prompt of 32,768 tokens on a GPU against the CPU: one layer with a sliding window and one without, heads of
// Mixtral's shape, dense feed-forwards (no choice of an expert flips). Prompt in chunks, decode steps at its end.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "device/device.h"
#include "device/must.h"
#include "device/random_data.h"
#include "formats/safetensors_writer.h"
#include "model/device_model.h"
#include "numerics/bf16.h"
#include "support/scratch_folder.h"
#include "unit/model/golden_model.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using model::DeviceModel;

constexpr int64_t kContext = 32768;
constexpr int64_t kDecoded = 12;  // of these one by one
constexpr int64_t kHidden = 256, kHeads = 4, kHeadDim = 128, kVocabulary = 512;
constexpr int64_t kLayers = 2, kWidth = 256;
// Each side's roundings of the residual stream, four a block and two around, half a unit of bf16 each, all in one
// direction.
constexpr double kBound = 2 * static_cast<double>(4 * kLayers + 2) * 0x1p-9;

// Sizes of weights so that what attention adds outweighs what was there before: scores of deviation 2 leave some 700
// of 32,768 keys, whose values nearly cancel, and o_proj makes up for it.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& folder) {
    matrix("model.embed_tokens.weight", kVocabulary, kHidden, 1);
    matrix("lm_head.weight", kVocabulary, kHidden, 1 / std::sqrt(static_cast<double>(kHidden)));
    constant("model.norm.weight", kHidden, 1);
    for (int64_t l = 0; l < kLayers; ++l) {
      const std::string layer = fmt::format("model.layers.{}.", l);
      const double linear = 1 / std::sqrt(static_cast<double>(kHidden));
      constant(layer + "input_layernorm.weight", kHidden, 1);
      constant(layer + "post_attention_layernorm.weight", kHidden, 1);
      matrix(layer + "self_attn.q_proj.weight", kHeads * kHeadDim, kHidden, linear);
      matrix(layer + "self_attn.k_proj.weight", kHeadDim, kHidden, linear);
      matrix(layer + "self_attn.v_proj.weight", kHeadDim, kHidden, linear);
      matrix(layer + "self_attn.o_proj.weight", kHidden, kHeads * kHeadDim, l == 0 ? 0.8 : 8);
      constant(layer + "self_attn.q_norm.weight", kHeadDim, 1.40625);
      constant(layer + "self_attn.k_norm.weight", kHeadDim, 1.40625);
      matrix(layer + "mlp.gate_proj.weight", kWidth, kHidden, linear);
      matrix(layer + "mlp.up_proj.weight", kWidth, kHidden, linear);
      matrix(layer + "mlp.down_proj.weight", kHidden, kWidth, linear);
    }
    auto writer = must(formats::SafetensorsWriter::create(folder + "/model.safetensors", declarations_));
    for (size_t i = 0; i < declarations_.size(); ++i) {
      must(writer.write(declarations_[i].name, std::as_bytes(std::span(values_[i]))));
    }
    must(writer.finish());
    std::ofstream(folder + "/config.json") << kConfig;
  }

 private:
  static constexpr const char* kConfig = R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128,
    "intermediate_size": 256, "moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2,
    "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [0, 1], "vocab_size": 512,
    "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06, "hidden_act": "silu",
    "attention_bias": false, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "eos_token_id": 511,
    "use_sliding_window": true, "sliding_window": 4096,
    "layer_types": ["sliding_attention", "full_attention"]})";

  // Uniform, of this deviation.
  void matrix(const std::string& name, int64_t rows, int64_t columns, double deviation) {
    std::vector<uint16_t> values(static_cast<size_t>(rows * columns));
    const auto range = static_cast<float>(deviation * std::sqrt(3.0));
    const uint64_t seed = declarations_.size() + 1;
    for (size_t i = 0; i < values.size(); ++i) {
      const auto bits = static_cast<int32_t>(hash(seed, i) >> 32);
      values[i] = numerics::bf16_from_f32(static_cast<float>(bits) * 0x1p-31f * range);
    }
    add(name, {rows, columns}, std::move(values));
  }
  void constant(const std::string& name, int64_t size, float value) {
    add(name, {size}, std::vector<uint16_t>(static_cast<size_t>(size), numerics::bf16_from_f32(value)));
  }
  void add(const std::string& name, std::vector<int64_t> shape, std::vector<uint16_t> values) {
    declarations_.push_back({name, formats::DType::kBF16, std::move(shape)});
    values_.push_back(std::move(values));
  }

  std::vector<formats::TensorDeclaration> declarations_;
  std::vector<std::vector<uint16_t>> values_;
};

// Logits of the last token of the prompt and of each decoded one: the prompt in chunks, then token by token.
std::vector<Tensor> run(model::Forward& model, const std::vector<int32_t>& ids, int64_t chunk) {
  std::vector<int32_t> pages(static_cast<size_t>(kContext / model::kPagePositions));
  std::iota(pages.begin(), pages.end(), 0);
  const auto prompt = static_cast<int64_t>(ids.size()) - kDecoded;
  std::vector<Tensor> rows;
  for (int64_t begin = 0; begin < kContext;) {
    const int64_t end = begin < prompt ? std::min(prompt, begin + chunk) : begin + 1;
    const auto count = static_cast<size_t>(end - begin);
    std::vector<int32_t> positions(count), wanted;
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
    const std::vector<int32_t> sequences(count, 0);
    if (end >= prompt) wanted.push_back(static_cast<int32_t>(count) - 1);
    std::vector<float> logits(wanted.size() * static_cast<size_t>(kVocabulary));
    must(model.run({std::span(ids).subspan(static_cast<size_t>(begin), count), positions, sequences, pages,
                    static_cast<int64_t>(pages.size()), wanted},
                   logits));
    if (!wanted.empty()) rows.push_back({{1, kVocabulary}, std::move(logits)});
    begin = end;
  }
  return rows;
}

// Largest relative rms difference of a row.
double distance(const std::vector<Tensor>& got, const std::vector<Tensor>& want) {
  double most = 0;
  for (size_t r = 0; r < want.size(); ++r) {
    const double off =
        rms_difference(got[r].row(0), want[r].row(0), kVocabulary) / row_rms(want[r].row(0), kVocabulary);
    if (!(off <= most)) most = off;
  }
  return most;
}

TEST(LongContext, GpuEqualsTheCpuWithinTheRoundings) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const ScratchFolder folder;
  const Checkpoint checkpoint(folder.path());
  std::vector<int32_t> ids(static_cast<size_t>(kContext));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(hash(5, i) % (kVocabulary - 1));

  ThreadPool pool(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  model::LoadOptions options = options_of({"", Numerics::kExact, Rounding::kBf16});
  options.pool = &pool;
  options.cache_pages = kContext / model::kPagePositions;
  const auto cpu = load_model(folder.path(), options);
  model::DeviceOptions device;
  device.table = must(kernels::device_table());
  const auto gpu = must(DeviceModel::load(folder.path(), options, device));
  ASSERT_NE(cpu, nullptr);

  const auto want = run(*cpu, ids, 2048);
  const auto got = run(*gpu, ids, 2048);
  ASSERT_EQ(got.size(), static_cast<size_t>(kDecoded + 1));
  EXPECT_LT(distance(got, want), kBound);
  std::printf("GPU and CPU: %.5f of %.5f\n", distance(got, want), kBound);
  // Other chunks, the same bits.
  const auto chunked = run(*gpu, ids, 1777);
  for (size_t r = 0; r < got.size(); ++r) EXPECT_EQ(chunked[r].values, got[r].values) << "row " << r;
  // And it would show: one key in 32, anywhere, moves the rows by more.
  constexpr int64_t kChanged = 16;  // pages
  for (const int64_t page : {int64_t{0}, int64_t{200}, kContext / model::kPagePositions - kChanged - 1}) {
    std::vector<int32_t> changed = ids;
    for (int64_t i = 0; i < kChanged * model::kPagePositions; ++i) {
      int32_t& id = changed[static_cast<size_t>(page * model::kPagePositions + i)];
      id = (id + 97) % (kVocabulary - 1);
    }
    const double moved = distance(run(*gpu, changed, 2048), want);
    EXPECT_GT(moved, kBound) << "pages from " << page << " on";
    std::printf("pages from %d on changed: %.4f\n", static_cast<int>(page), moved);
  }
}

}  // namespace
}  // namespace quadrille::testing
