// SPDX-License-Identifier: Apache-2.0
// Every golden model of the families, on a GPU, against the golden tensors themselves: whole models within twice the
// rms that the set measured between bf16 and fp32 compute, single MoE blocks within twice the bf16 noise of a block
// (the rules of unit/model/golden_bf16_test.cpp, where the CPU tables are held to them).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "device/device.h"
#include "device/must.h"
#include "formats/json.h"
#include "model/device_model.h"
#include "support/golden.h"
#include "unit/model/golden_model.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using model::DeviceModel;

constexpr double kMarginBound = 0.05;

struct Golden {
  const char* model;    // folder under models/
  const char* tensors;  // golden file, without its ending
  bool quantised;
};
void PrintTo(const Golden& golden, std::ostream* out) {
  *out << golden.model;
}

const Golden kModels[] = {
    {"qwen3_moe/bf16", "qwen3_moe/golden", false},
    {"qwen2_moe/bf16", "qwen2_moe/golden", false},
    {"mixtral/bf16", "mixtral/golden", false},
    {"olmoe/bf16", "olmoe/golden", false},
    {"olmoe_clip/bf16", "olmoe_clip/golden", false},
    {"qwen3_moe/w4a8-g128", "qwen3_moe/golden-w4a8-g128", true},
    {"qwen3_moe/w4a8-g64", "qwen3_moe/golden-w4a8-g64", true},
    {"qwen3_moe/w4a8-g32", "qwen3_moe/golden-w4a8-g32", true},
    {"qwen3_moe/w4a8-channel", "qwen3_moe/golden-w4a8-channel", true},
    {"qwen2_moe/w4a8-g64", "qwen2_moe/golden-w4a8-g64", true},
    {"mixtral/w4a8-g128", "mixtral/golden-w4a8-g128", true},
    // The same codes, scales and logits in another storage.
    {"mixtral/w4a8-g128-int", "mixtral/golden-w4a8-g128", true},
    {"olmoe/w4a8-g128", "olmoe/golden-w4a8-g128", true},
    {"olmoe_clip/w4a8-g64", "olmoe_clip/golden-w4a8-g64", true},
};

class GoldenModels : public ::testing::TestWithParam<Golden> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    const std::string base = GetParam().tensors;
    folder_ = model_path(GetParam().model);
    const auto tensors = model_path(base + ".safetensors"), report = model_path(base + ".json");
    if (!folder_ || !tensors || !report) GTEST_SKIP() << kNoGolden;
    golden_.emplace(*tensors);
    report_ = must(formats::parse_json_file(*report));
  }

  std::unique_ptr<DeviceModel> load(Numerics numerics) const {
    model::DeviceOptions device;
    device.table = must(kernels::device_table());
    return must(DeviceModel::load(*folder_, options_of({"", numerics, Rounding::kBf16}), device));
  }

  // Rms of the logits' error over the rows of sequence t48; of the unquantised models over those whose router margins
  // are above kMarginBound, as the file's tolerance counts.
  double logits_error(DeviceModel& model, const std::string& wanted, int64_t chunk) const {
    const Tensor logits = run_sequences(model, {golden_->ids("ids.t48")}, {chunk})[0];
    const Tensor expected = golden_->tensor(wanted);
    std::vector<double> margins(static_cast<size_t>(expected.rows()), INFINITY);
    if (!GetParam().quantised) {
      const Tensor margin = golden_->tensor("router_margin.t48");
      for (int64_t m = 0; m < margin.rows(); ++m) {
        for (size_t t = 0; t < margins.size(); ++t) margins[t] = std::min<double>(margins[t], margin.row(m)[t]);
      }
    }
    double sum = 0;
    int64_t rows = 0;
    for (int64_t t = 0; t < expected.rows(); ++t) {
      if (margins[static_cast<size_t>(t)] <= kMarginBound) continue;
      const double difference = rms_difference(logits.row(t), expected.row(t), expected.width());
      sum += difference * difference;
      ++rows;
    }
    EXPECT_GT(rows, 20);
    return std::sqrt(sum / static_cast<double>(rows));
  }

  void check_blocks(DeviceModel& model, const std::string& wanted, const std::string& noise_name) const {
    const formats::Json& noise = report_.at(noise_name);
    const Tensor input = golden_->tensor("moe_input.t48");
    const Tensor expected = golden_->tensor(wanted);
    const int64_t tokens = input.shape[1], count = tokens * input.shape[2];
    int64_t m = 0;
    for (int64_t l = 0; l < model.config().num_layers; ++l) {
      if (!model.config().layers[static_cast<size_t>(l)].is_moe) continue;
      std::vector<float> out(static_cast<size_t>(count));
      const float* x = input.values.data() + m * count;
      must(model.run_moe_block(l, {x, static_cast<size_t>(count)}, tokens, out));
      const double bound = 2 * noise[static_cast<size_t>(m)].at("rms").get<double>();
      EXPECT_LE(rms_difference(out.data(), expected.values.data() + m * count, count), bound) << "layer " << l;
      ++m;
    }
    EXPECT_EQ(m, input.shape[0]);
  }

  // `name`: exact, vllm, or f32 of the unquantised.
  void check(const std::string& name, Numerics numerics, const std::string& tolerance, const std::string& noise) const {
    const auto model = load(numerics);
    const double bound = 2 * report_.at(tolerance).at("rms").get<double>();
    for (const int64_t chunk : {int64_t{1} << 20, int64_t{1}}) {
      const double error = logits_error(*model, "logits_" + name + ".t48", chunk);
      EXPECT_LE(error, bound) << "chunks of " << chunk;
      RecordProperty(fmt::format("{}_{}", name, chunk), fmt::format("{:.4f} of {:.4f}", error, bound));
    }
    check_blocks(*model, "moe_output_" + name + ".t48", noise);
  }

  std::optional<std::string> folder_;
  std::optional<GoldenFile> golden_;
  formats::Json report_;
};

TEST_P(GoldenModels, LogitsAndBlocksStayWithinTwiceTheBf16Noise) {
  if (!GetParam().quantised) return check("f32", Numerics::kExact, "tolerance", "moe_block_bf16_vs_f32");
  check("exact", Numerics::kExact, "tolerance_bf16_compute", "moe_block_exact_bf16_vs_exact");
  check("vllm", Numerics::kVllm, "tolerance_bf16_compute_vllm", "moe_block_vllm_bf16_vs_vllm");
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModels, ::testing::ValuesIn(kModels), [](const auto& info) {
  std::string name = info.param.model;
  for (char& c : name) c = c == '-' || c == '/' ? '_' : c;
  return name;
});

}  // namespace
}  // namespace quadrille::testing
