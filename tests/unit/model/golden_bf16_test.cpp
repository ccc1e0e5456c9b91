// SPDX-License-Identifier: Apache-2.0
// Models in round bf16. Unquantised logits: twice the rms that the golden set measured between bf16 and fp32, on rows
// whose router margin is above 0.05. Quantised models: single MoE blocks, where no flip is carried on, within twice the
// bf16 noise that the set measured on them. Also the bits that must not change: CPU tables, chunks, neighbours.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "formats/json.h"
#include "golden_model.h"
#include "kernels/api/registry.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::Rounding;

constexpr double kMarginBound = 0.05;

formats::Json read_json(const std::string& path) {
  auto json = formats::parse_json_file(path);
  EXPECT_TRUE(json.ok()) << (json.ok() ? "" : json.error().message);
  return json.ok() ? *json : formats::Json();
}

using Param = std::tuple<const char*, const char*>;  // architecture (and variant), table
std::string param_name(const ::testing::TestParamInfo<Param>& info) {
  std::string text = std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
  for (char& c : text) c = c == '-' || c == '/' ? '_' : c;
  return text;
}

class Bf16Logits : public ::testing::TestWithParam<Param> {};

TEST_P(Bf16Logits, StayWithinTwiceTheBf16Noise) {
  const std::string architecture = std::get<0>(GetParam());
  const std::string reason = table_unavailable(std::get<1>(GetParam()));
  if (!reason.empty()) GTEST_SKIP() << reason;
  const auto folder = model_path(architecture + "/bf16");
  const auto tensors = model_path(architecture + "/golden.safetensors");
  if (!folder || !tensors) GTEST_SKIP() << kNoGolden;
  const GoldenFile golden(*tensors);
  const double bound = 2 * read_json(*model_path(architecture + "/golden.json"))["tolerance"]["rms"].get<double>();
  const auto model = load_model(*folder, options_of({std::get<1>(GetParam()), Numerics::kExact, Rounding::kBf16}));
  ASSERT_NE(model, nullptr);
  const Tensor logits = run_sequences(*model, {golden.ids("ids.t48")})[0];
  const Tensor expected = golden.tensor("logits_f32.t48");
  const Tensor margin = golden.tensor("router_margin.t48");
  double sum = 0;
  int64_t rows = 0;
  for (int64_t t = 0; t < expected.rows(); ++t) {
    double smallest = 1e9;
    for (int64_t m = 0; m < margin.shape[0]; ++m) smallest = std::min<double>(smallest, margin.row(m)[t]);
    if (smallest <= kMarginBound) continue;
    const double difference = rms_difference(logits.row(t), expected.row(t), expected.width());
    sum += difference * difference;
    ++rows;
  }
  ASSERT_GT(rows, 20);
  EXPECT_LE(std::sqrt(sum / static_cast<double>(rows)), bound) << rows << " rows";
}

INSTANTIATE_TEST_SUITE_P(Models, Bf16Logits,
                         ::testing::Combine(::testing::Values("qwen3_moe", "qwen2_moe", "mixtral", "olmoe",
                                                              "olmoe_clip"),
                                            ::testing::Values("ref", "hopper", "generic", "avx2", "avx512", "amx")),
                         param_name);

class Bf16Blocks : public ::testing::TestWithParam<Param> {
 protected:
  void check(const char* numerics_name, Numerics numerics) {
    const std::string name = std::get<0>(GetParam());
    const std::string architecture = name.substr(0, name.find('/')), variant = name.substr(name.find('/') + 1);
    const std::string reason = table_unavailable(std::get<1>(GetParam()));
    if (!reason.empty()) GTEST_SKIP() << reason;
    const auto folder = model_path(name);
    const auto tensors = model_path(architecture + "/golden-" + variant + ".safetensors");
    const auto report = model_path(architecture + "/golden-" + variant + ".json");
    if (!folder || !tensors || !report) GTEST_SKIP() << kNoGolden;
    const GoldenFile golden(*tensors);
    const auto noise = read_json(*report)[fmt::format("moe_block_{0}_bf16_vs_{0}", numerics_name)];
    const auto model = load_model(*folder, options_of({std::get<1>(GetParam()), numerics, Rounding::kBf16}));
    ASSERT_NE(model, nullptr);
    const Tensor input = golden.tensor("moe_input.t48");
    const Tensor expected = golden.tensor(fmt::format("moe_output_{}.t48", numerics_name));
    const int64_t tokens = input.shape[1], count = tokens * input.shape[2];
    int64_t m = 0;
    for (int64_t l = 0; l < model->config().num_layers; ++l) {
      if (!model->config().layers[l].is_moe) continue;
      std::vector<float> out(count);
      const float* x = input.values.data() + m * count;
      ASSERT_TRUE(model->run_moe_block(l, {x, static_cast<size_t>(count)}, tokens, out).ok());
      const double bound = 2 * noise[m]["rms"].get<double>();
      EXPECT_LE(rms_difference(out.data(), expected.values.data() + m * count, count), bound) << "layer " << l;
      ++m;
    }
    EXPECT_EQ(m, input.shape[0]);
  }
};

TEST_P(Bf16Blocks, ExactStaysWithinTwiceTheBf16Noise) {
  check("exact", Numerics::kExact);
}
TEST_P(Bf16Blocks, VllmStaysWithinTwiceTheBf16Noise) {
  check("vllm", Numerics::kVllm);
}

INSTANTIATE_TEST_SUITE_P(Models, Bf16Blocks,
                         ::testing::Combine(::testing::Values("qwen3_moe/w4a8-g128", "qwen3_moe/w4a8-g32",
                                                              "qwen3_moe/w4a8-channel", "qwen2_moe/w4a8-g64",
                                                              "mixtral/w4a8-g128", "olmoe/w4a8-g128",
                                                              "olmoe_clip/w4a8-g64"),
                                            ::testing::Values("ref", "hopper", "generic", "avx2", "avx512", "amx")),
                         param_name);

std::vector<Tensor> run_bf16(const std::string& folder, const char* table, Numerics numerics, int64_t chunk) {
  const GoldenFile golden(*model_path("qwen2_moe/golden-w4a8-g64.safetensors"));
  const auto model = load_model(folder, options_of({table, numerics, Rounding::kBf16}));
  if (model == nullptr) return {};
  return run_sequences(*model, {golden.ids("ids.t48"), golden.ids("ids.u29")}, {chunk});
}

TEST(Bf16Bits, CpuTablesAndChunksAgree) {
  const auto folder = model_path("qwen2_moe/w4a8-g64");
  ASSERT_TRUE(folder.has_value());
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    const auto generic = run_bf16(*folder, "generic", numerics, 1 << 20);
    ASSERT_EQ(generic.size(), 2u);
    for (const char* table : {"generic", "avx2", "avx512", "amx"}) {
      if (!table_unavailable(table).empty()) continue;
      const auto other = run_bf16(*folder, table, numerics, 5);
      ASSERT_EQ(other.size(), 2u);
      EXPECT_EQ(other[0].values, generic[0].values) << table;
      EXPECT_EQ(other[1].values, generic[1].values) << table;
    }
  }
}

TEST(Bf16Bits, HopperIsItsOwnUnderChunks) {
  const auto folder = model_path("qwen2_moe/w4a8-g64");
  ASSERT_TRUE(folder.has_value());
  const auto whole = run_bf16(*folder, "hopper", Numerics::kVllm, 1 << 20);
  const auto pieces = run_bf16(*folder, "hopper", Numerics::kVllm, 7);
  ASSERT_EQ(whole.size(), 2u);
  EXPECT_EQ(whole[0].values, pieces[0].values);
  EXPECT_EQ(whole[1].values, pieces[1].values);
}

TEST(Rounding, HopperHasNoRoundF32) {
  const auto folder = model_path("olmoe_clip/w4a8-g64");
  ASSERT_TRUE(folder.has_value());
  const auto model = model::Model::load(*folder, options_of({"hopper", Numerics::kExact, Rounding::kF32}));
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(model.error().message.find("hopper"), std::string::npos) << model.error().message;
}

// The forced table is the one that works: its own count of calls rises, those of the others stay.
TEST(Tables, TheForcedTableRuns) {
  const auto folder = model_path("olmoe_clip/w4a8-g64");
  ASSERT_TRUE(folder.has_value());
  for (const kernels::KernelTable* table : kernels::all_tables()) {
    if (!table_unavailable(table->name).empty()) continue;
    const auto model = load_model(*folder, options_of({table->name, Numerics::kExact, Rounding::kBf16}));
    ASSERT_NE(model, nullptr);
    std::vector<uint64_t> before;
    for (const kernels::KernelTable* other : kernels::all_tables()) before.push_back(other->num_calls());
    run_sequences(*model, {{1, 2, 3}});
    size_t i = 0;
    for (const kernels::KernelTable* other : kernels::all_tables()) {
      const bool ran = other->num_calls() > before[i++];
      EXPECT_EQ(ran, other == table) << other->name << " while " << table->name << " was forced";
    }
  }
}

}  // namespace
}  // namespace quadrille::testing
