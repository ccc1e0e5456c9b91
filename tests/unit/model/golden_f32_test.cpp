// SPDX-License-Identifier: Apache-2.0
// Whole models against the golden logits in fp32 compute (round f32), on every table that has it. Tolerances are those
// that the golden set derives: without quantisation another order of sums moves a logit by less than 3e-5, the bound is
// 1e-3; quantised rows have 1e-3 + 8 * row_jitter, and one row in twenty may miss it; the median row stays within 1e-3.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "golden_model.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

constexpr double kLogitBound = 1e-3;
constexpr double kJitterFactor = 8;
// The logits of the golden models have an rms of about 2, so a logit bound is this, relative to a row's rms.
constexpr double kRelativeBound = kLogitBound / 2;

struct Case {
  const char* architecture;
  const char* variant;   // folder of the checkpoint
  const char* golden;    // golden file without ".safetensors"
  const char* numerics;  // "f32" (unquantised), "exact", "vllm", by the names of the golden tensors
};

const Case kCases[] = {
    {"qwen3_moe", "bf16", "golden", "f32"},
    {"qwen2_moe", "bf16", "golden", "f32"},
    {"mixtral", "bf16", "golden", "f32"},
    {"olmoe", "bf16", "golden", "f32"},
    {"olmoe_clip", "bf16", "golden", "f32"},
    {"qwen3_moe", "w4a8-g128", "golden-w4a8-g128", "exact"},
    {"qwen3_moe", "w4a8-g64", "golden-w4a8-g64", "exact"},
    {"qwen3_moe", "w4a8-g32", "golden-w4a8-g32", "exact"},
    {"qwen3_moe", "w4a8-channel", "golden-w4a8-channel", "exact"},
    {"qwen2_moe", "w4a8-g64", "golden-w4a8-g64", "exact"},
    {"mixtral", "w4a8-g128", "golden-w4a8-g128", "exact"},
    {"mixtral", "w4a8-g128-int", "golden-w4a8-g128", "exact"},
    // The weight-only checkpoint has the codes and scales of its W4A8 twin: run as W4A8 it must give the twin's logits.
    {"mixtral", "w4a16-g128", "golden-w4a8-g128", "exact"},
    {"olmoe", "w4a8-g128", "golden-w4a8-g128", "exact"},
    {"olmoe_clip", "w4a8-g64", "golden-w4a8-g64", "exact"},
    {"qwen3_moe", "w4a8-g128", "golden-w4a8-g128", "vllm"},
    {"qwen3_moe", "w4a8-g64", "golden-w4a8-g64", "vllm"},
    {"qwen3_moe", "w4a8-g32", "golden-w4a8-g32", "vllm"},
    {"qwen3_moe", "w4a8-channel", "golden-w4a8-channel", "vllm"},
    {"qwen2_moe", "w4a8-g64", "golden-w4a8-g64", "vllm"},
    {"mixtral", "w4a8-g128", "golden-w4a8-g128", "vllm"},
    {"mixtral", "w4a8-g128-int", "golden-w4a8-g128", "vllm"},
    {"olmoe", "w4a8-g128", "golden-w4a8-g128", "vllm"},
    {"olmoe_clip", "w4a8-g64", "golden-w4a8-g64", "vllm"},
};

// What a run shows of itself, kept for comparison.
class Recorder : public model::StepObserver {
 public:
  void hidden(int64_t, const float* x, int64_t num_tokens, int64_t width) override {
    hidden_.push_back({{num_tokens, width}, {x, x + num_tokens * width}});
  }
  void final_norm(const float* x, int64_t num_rows, int64_t width) override {
    final_norm_ = {{num_rows, width}, {x, x + num_rows * width}};
  }
  void router(int64_t, const float* logits, const int32_t* ids, const float* weights, int64_t num_tokens,
              int64_t num_experts, int64_t top_k) override {
    logits_.push_back({{num_tokens, num_experts}, {logits, logits + num_tokens * num_experts}});
    ids_.emplace_back(ids, ids + num_tokens * top_k);
    weights_.push_back({{num_tokens, top_k}, {weights, weights + num_tokens * top_k}});
  }

  std::vector<Tensor> hidden_, logits_, weights_;
  std::vector<std::vector<int32_t>> ids_;
  Tensor final_norm_;
};

class GoldenF32 : public ::testing::TestWithParam<std::tuple<Case, const char*>> {
 protected:
  void SetUp() override {
    const Case& c = std::get<0>(GetParam());
    const std::string reason = table_unavailable(table());
    if (!reason.empty()) GTEST_SKIP() << reason;
    const auto folder = model_path(std::string(c.architecture) + "/" + c.variant);
    const auto golden = model_path(std::string(c.architecture) + "/" + c.golden + ".safetensors");
    if (!folder || !golden) GTEST_SKIP() << kNoGolden;
    golden_.emplace(*golden);
    model::LoadOptions options = options_of({table(), numerics(), kernels::Rounding::kF32});
    options.run_weight_only_as_fp8 = std::string(c.variant).starts_with("w4a16");
    model_ = load_model(*folder, options);
    ASSERT_NE(model_, nullptr);
  }

  std::string table() const { return std::get<1>(GetParam()); }
  std::string name() const { return std::get<0>(GetParam()).numerics; }
  bool quantised() const { return name() != "f32"; }
  kernels::Numerics numerics() const { return name() == "vllm" ? kernels::Numerics::kVllm : kernels::Numerics::kExact; }
  std::vector<int32_t> ids(const std::string& sequence) const { return golden_->ids("ids." + sequence); }
  // Bound of each row of a sequence's stored logits.
  std::vector<double> bounds(const std::string& sequence, int64_t rows) const {
    std::vector<double> bound(rows, kLogitBound);
    if (!quantised()) return bound;
    const Tensor jitter = golden_->tensor("row_jitter_" + name() + "." + sequence);
    for (int64_t r = 0; r < rows; ++r) bound[r] += kJitterFactor * jitter.values[r];
    return bound;
  }
  void compare_logits(const std::string& sequence, const Tensor& logits) const;

  std::optional<GoldenFile> golden_;
  std::unique_ptr<model::Model> model_;
};

void GoldenF32::compare_logits(const std::string& sequence, const Tensor& logits) const {
  const Tensor expected = golden_->tensor("logits_" + name() + "." + sequence);
  ASSERT_LE(expected.rows(), logits.rows());
  ASSERT_EQ(expected.width(), logits.width());
  const int64_t skipped = logits.rows() - expected.rows();  // t300 stores its last rows
  const std::vector<double> bound = bounds(sequence, expected.rows());
  std::vector<double> differences;
  int64_t misses = 0;
  for (int64_t r = 0; r < expected.rows(); ++r) {
    differences.push_back(max_difference(logits.row(skipped + r), expected.row(r), expected.width()));
    if (!(differences.back() <= bound[r])) ++misses;
  }
  const int64_t allowed = quantised() ? expected.rows() / 20 : 0;
  EXPECT_LE(misses, allowed) << sequence << ": largest difference "
                             << *std::max_element(differences.begin(), differences.end());
  if (sequence == "t300") return;
  EXPECT_LE(median(differences), kLogitBound) << sequence;
}

TEST_P(GoldenF32, LogitsMatch) {
  for (const char* sequence : {"t1", "t7", "t48", "u29", "t300"}) {
    if (!golden_->has("logits_" + name() + "." + std::string(sequence))) continue;
    compare_logits(sequence, run_sequences(*model_, {ids(sequence)})[0]);
  }
}

TEST_P(GoldenF32, ChunksAndNeighboursChangeNoBit) {
  const std::vector<Tensor> alone = {run_sequences(*model_, {ids("u29")})[0], run_sequences(*model_, {ids("t48")})[0]};
  for (const int64_t chunk : {1, 16, 64}) {
    const auto together = run_sequences(*model_, {ids("u29"), ids("t7"), ids("t48")}, {chunk});
    EXPECT_EQ(alone[0].values, together[0].values) << "u29 in chunks of " << chunk;
    EXPECT_EQ(alone[1].values, together[2].values) << "t48 in chunks of " << chunk;
  }
}

// The golden set stores hidden states, routes and greedy text of f32 and exact.
class GoldenTraceF32 : public GoldenF32 {};

TEST_P(GoldenTraceF32, HiddenStatesAndRoutesMatch) {
  Recorder recorder;
  model_->set_observer(&recorder);
  run_sequences(*model_, {ids("t48")});
  const Tensor hidden = golden_->tensor("hidden_" + name() + ".t48");
  const int64_t num_layers = hidden.shape[0], tokens = hidden.shape[1], width = hidden.shape[2];
  ASSERT_EQ(static_cast<int64_t>(recorder.hidden_.size()), num_layers);
  const std::vector<double> bound = bounds("t48", tokens);
  for (int64_t l = 0; l < num_layers; ++l) {
    int64_t misses = 0;
    std::vector<double> relative;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* expected = hidden.values.data() + (l * tokens + t) * width;
      relative.push_back(rms_difference(recorder.hidden_[l].row(t), expected, width) / row_rms(expected, width));
      if (!(relative.back() <= bound[t] / 2)) ++misses;
    }
    EXPECT_LE(misses, quantised() ? tokens / 20 : 0) << "layer " << l;
    EXPECT_LE(median(relative), kRelativeBound) << "layer " << l;
  }
  const std::string prefix = quantised() ? "_" + name() : "";
  const Tensor margin = golden_->tensor("router_margin" + prefix + ".t48");
  const Tensor expected_ids = golden_->tensor("router_ids" + prefix + ".t48");
  const Tensor expected_weights = golden_->tensor("router_weights" + prefix + ".t48");
  const int64_t top_k = expected_ids.shape[2];
  int64_t others = 0;
  for (int64_t m = 0; m < expected_ids.shape[0]; ++m) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t first = (m * tokens + t) * top_k;
      for (int64_t j = 0; j < top_k; ++j) {
        const bool same = recorder.ids_[m][t * top_k + j] == static_cast<int32_t>(expected_ids.values[first + j]);
        const double difference =
            std::abs(recorder.weights_[m].values[t * top_k + j] - expected_weights.values[first + j]);
        // A softmax weight moves by at most its logit's error over two.
        if (!same || !(difference <= bound[t] / 2)) {
          ++others;
          break;
        }
      }
    }
    ASSERT_GT(*std::min_element(margin.values.begin(), margin.values.end()), kRelativeBound) << "the set's own promise";
  }
  EXPECT_LE(others, quantised() ? expected_ids.shape[0] * tokens / 20 : 0);
  model_->set_observer(nullptr);
}

// One block at a time: no error is carried over. About one code in 150,000 lies within fp32 noise of a rounding
// boundary and may flip: such a row moves by up to a sixteenth of one of K products, far less than 2 % of its rms.
TEST_P(GoldenF32, MoeBlocksMatch) {
  const Tensor input = golden_->tensor("moe_input.t48");
  const Tensor expected = golden_->tensor("moe_output_" + name() + ".t48");
  const int64_t tokens = input.shape[1], width = input.shape[2];
  int64_t m = 0;
  for (int64_t l = 0; l < model_->config().num_layers; ++l) {
    if (!model_->config().layers[l].is_moe) continue;
    const int64_t first = m++ * tokens * width;
    std::vector<float> out(tokens * width);
    const Status status =
        model_->run_moe_block(l, {input.values.data() + first, static_cast<size_t>(tokens * width)}, tokens, out);
    ASSERT_TRUE(status.ok()) << status.error().message;
    int64_t flips = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = expected.values.data() + first + t * width;
      const double relative = rms_difference(out.data() + t * width, row, width) / row_rms(row, width);
      if (relative > 1e-5) ++flips;
      EXPECT_LE(relative, quantised() ? 0.02 : 1e-5) << "layer " << l << ", token " << t;
    }
    EXPECT_LE(flips, 1) << "layer " << l;
  }
  EXPECT_EQ(m, input.shape[0]);
}

// Golden tokens are fed; each step's argmax must be the next one. A step that a flip may turn has a margin below 0.5.
TEST_P(GoldenTraceF32, GreedyTextMatches) {
  for (const char* sequence : {"t7", "t48"}) {
    const std::vector<int32_t> text = golden_->ids("greedy_" + name() + "." + sequence);
    const Tensor margin = golden_->tensor("greedy_margin_" + name() + "." + sequence);
    std::vector<int32_t> tokens = ids(sequence);
    const auto prompt = static_cast<int64_t>(tokens.size());
    tokens.insert(tokens.end(), text.begin(), text.end() - 1);
    const Tensor logits = run_sequences(*model_, {tokens}, {16})[0];
    int64_t misses = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const float* row = logits.row(prompt - 1 + static_cast<int64_t>(i));
      const auto best = static_cast<int32_t>(std::max_element(row, row + logits.width()) - row);
      if (best == text[i]) continue;
      ++misses;
      EXPECT_LT(margin.values[i], quantised() ? 0.5 : 2 * kLogitBound) << sequence << ", step " << i;
    }
    EXPECT_LE(misses, quantised() ? 3 : 0) << sequence;
  }
}

std::string test_name(const ::testing::TestParamInfo<std::tuple<Case, const char*>>& info) {
  const Case& c = std::get<0>(info.param);
  std::string text = std::string(c.architecture) + "_" + c.variant + "_" + c.numerics + "_" + std::get<1>(info.param);
  std::replace(text.begin(), text.end(), '-', '_');
  return text;
}

std::vector<Case> traced_cases() {
  std::vector<Case> cases(std::begin(kCases), std::end(kCases));
  std::erase_if(cases, [](const Case& c) { return std::string(c.numerics) == "vllm"; });
  return cases;
}

const auto kTables = ::testing::Values("ref", "generic", "avx2", "avx512", "amx");
INSTANTIATE_TEST_SUITE_P(Models, GoldenF32, ::testing::Combine(::testing::ValuesIn(kCases), kTables), test_name);
INSTANTIATE_TEST_SUITE_P(Models, GoldenTraceF32, ::testing::Combine(::testing::ValuesIn(traced_cases()), kTables),
                         test_name);

}  // namespace
}  // namespace quadrille::testing
