// SPDX-License-Identifier: Apache-2.0
// A whole model on a GPU: beside the CPU within the noise of bf16, and beside itself bit by bit (alone, in a batch, in
// chunks, as a graph, through enqueue() and collect()).
#include "model/device_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "device/device.h"
#include "device/must.h"
#include "device/random_data.h"
#include "unit/model/golden_model.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using model::DeviceModel;

std::string abacus(const std::string& kind) {
  return std::string(QD_SOURCE_DIR) + "/models/abacus/" + kind;
}

std::unique_ptr<DeviceModel> on_gpu(const std::string& folder, Numerics numerics = Numerics::kExact,
                                    model::DeviceOptions device = {}) {
  device.table = must(kernels::device_table());
  model::LoadOptions options = options_of({"", numerics, Rounding::kBf16});
  options.cache_pages = 64;
  return must(DeviceModel::load(folder, options, device));
}

std::vector<std::vector<int32_t>> prompts(int64_t count, int64_t vocab) {
  std::vector<std::vector<int32_t>> out;
  for (int64_t s = 0; s < count; ++s) {
    std::vector<int32_t> ids(static_cast<size_t>(17 + 29 * s % 113));
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = static_cast<int32_t>(hash(static_cast<uint64_t>(s), i) % static_cast<uint64_t>(vocab));
    }
    out.push_back(std::move(ids));
  }
  return out;
}

// "" or the first bit that differs.
std::string difference(const Tensor& got, const Tensor& want) {
  if (got.values.size() != want.values.size()) {
    return fmt::format("{} values, expected {}", got.values.size(), want.values.size());
  }
  size_t count = 0, first = 0;
  for (size_t i = 0; i < got.values.size(); ++i) {
    if (std::memcmp(&got.values[i], &want.values[i], sizeof(float)) == 0) continue;
    if (count++ == 0) first = i;
  }
  if (count == 0) return "";
  return fmt::format("{} of {} differ, the first at [{}]: {} and {}", count, got.values.size(), first,
                     got.values[first], want.values[first]);
}

class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  }
};
using DeviceModelTest = OnGpu;

// How far rows of logits are from those of another way to compute the model: rms of the difference over rms of the row.
struct Distance {
  std::vector<double> rows;
  int64_t choices = 0;  // rows whose largest logit is another one
};
Distance distance(std::span<const Tensor> got, std::span<const Tensor> want) {
  Distance out;
  for (size_t s = 0; s < want.size(); ++s) {
    const int64_t width = want[s].width();
    for (int64_t t = 0; t < want[s].rows(); ++t) {
      const float* a = got[s].row(t);
      const float* b = want[s].row(t);
      const double off = rms_difference(a, b, width);
      out.rows.push_back(off / row_rms(b, width));
      out.choices += std::max_element(a, a + width) - a != std::max_element(b, b + width) - b;
    }
  }
  return out;
}

// What the GPU does otherwise than the CPU (order of the dense sums, attention's exponent) flips roundings to bf16, and
// those flip e4m3 codes and choices of the router. How far that carries is the model's own: the CPU's two orders of
// the W4A8 sums say it, and the GPU may be twice as far. Where nothing is W4A8 they are equal: then each side's
// roundings of the residual stream, four a block and two around, may add up, half a unit of bf16 (2^-9) each.
// Choices that differ are counted likewise: twice as many as the CPU's two orders have, and three deviations of a
// count.
void expect_near_the_cpu(const std::string& folder, Numerics numerics) {
  SCOPED_TRACE(folder);
  const auto gpu = on_gpu(folder, numerics);
  const auto cpu = load_model(folder, options_of({"hopper", numerics, Rounding::kBf16}));
  const auto other = load_model(folder, options_of({"generic", numerics, Rounding::kBf16}));
  ASSERT_TRUE(cpu != nullptr && other != nullptr);
  const auto sequences = prompts(3, cpu->vocab_size());
  const auto want = run_sequences(*cpu, sequences);
  const Distance own = distance(run_sequences(*other, sequences), want);
  const Distance found = distance(run_sequences(*gpu, sequences), want);
  const double rounding = 2 * static_cast<double>(4 * cpu->config().num_layers + 2) * 0x1p-9;
  const double bound = median(own.rows) > 0 ? 2 * median(own.rows) : rounding;
  EXPECT_LT(median(found.rows), bound) << found.rows.size() << " rows, of the CPU " << median(own.rows);
  const auto of_cpu = static_cast<double>(own.choices);
  EXPECT_LE(static_cast<double>(found.choices), 2 * of_cpu + 3 * std::sqrt(2 * of_cpu + 1)) << "of the CPU " << of_cpu;
  ::testing::Test::RecordProperty("median",
                                  fmt::format("{}: {:.4f}, CPU {:.4f}", folder, median(found.rows), median(own.rows)));
}

TEST_F(DeviceModelTest, LogitsAreNearTheCpu) {
  expect_near_the_cpu(abacus("w4a8"), Numerics::kExact);
  expect_near_the_cpu(abacus("bf16"), Numerics::kExact);
}
TEST_F(DeviceModelTest, LogitsAreNearTheCpuInVllm) {
  expect_near_the_cpu(abacus("w4a8"), Numerics::kVllm);
}
TEST_F(DeviceModelTest, LogitsOfOtherFamiliesAreNearTheCpu) {
  for (const char* name : {"qwen2_moe/w4a8-g64", "olmoe_clip/w4a8-g64", "qwen2_moe/bf16", "olmoe_clip/bf16",
                           "mixtral/bf16", "mixtral/w4a8-g128", "mixtral/w4a8-g128-int", "qwen3_moe/w4a8-channel"}) {
    if (const auto folder = model_path(name)) expect_near_the_cpu(*folder, Numerics::kExact);
  }
}

// A block alone carries no flip on: its bits are those of the table `hopper` where all of it is W4A8.
TEST_F(DeviceModelTest, BlocksEqualHopper) {
  for (const char* name : {"qwen2_moe/w4a8-g64", "olmoe_clip/w4a8-g64"}) {
    const auto folder = model_path(name);
    ASSERT_TRUE(folder.has_value());
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      const auto gpu = on_gpu(*folder, numerics);
      const auto cpu = load_model(*folder, options_of({"hopper", numerics, Rounding::kBf16}));
      ASSERT_NE(cpu, nullptr);
      constexpr int64_t kTokens = 21;
      const auto count = static_cast<size_t>(kTokens * cpu->config().hidden_size);
      Tensor x{{kTokens, cpu->config().hidden_size}, std::vector<float>(count)};
      for (size_t i = 0; i < count; ++i) {
        const auto bits = static_cast<int16_t>(hash(7, i));
        x.values[i] = static_cast<float>(bits >> 8) * 0x1p-6f;  // bf16 holds it
      }
      for (int64_t l = 0; l < cpu->config().num_layers; ++l) {
        if (!cpu->config().layers[static_cast<size_t>(l)].is_moe) continue;
        Tensor want = x, got = x;
        must(cpu->run_moe_block(l, x.values, kTokens, want.values));
        must(gpu->run_moe_block(l, x.values, kTokens, got.values));
        EXPECT_EQ(difference(got, want), "") << name << ", layer " << l;
      }
    }
  }
}

TEST_F(DeviceModelTest, BatchAndChunksChangeNoBit) {
  for (const char* kind : {"w4a8", "bf16"}) {
    const auto gpu = on_gpu(abacus(kind));
    const auto sequences = prompts(7, gpu->vocab_size());
    const auto batch = run_sequences(*gpu, sequences);
    for (const int64_t chunk : {1, 2, 5, 64}) {
      const auto pieces = run_sequences(*gpu, sequences, {chunk});
      for (size_t s = 0; s < sequences.size(); ++s) {
        EXPECT_EQ(difference(pieces[s], batch[s]), "") << kind << ", chunk " << chunk << ", sequence " << s;
      }
    }
    for (size_t s = 0; s < sequences.size(); ++s) {
      EXPECT_EQ(difference(run_sequences(*gpu, {sequences[s]})[0], batch[s]), "") << kind << ", alone " << s;
    }
    EXPECT_GE(gpu->num_graphs(), 2);  // chunks of one token are decode steps
  }
}

TEST_F(DeviceModelTest, GraphsAndPiecesChangeNoBit) {
  model::DeviceOptions eager;
  eager.graphs = false;
  eager.max_step_tokens = 19;
  eager.max_sequences = 3;
  eager.max_logit_rows = 5;
  const auto graphs = on_gpu(abacus("w4a8")), calls = on_gpu(abacus("w4a8"), Numerics::kExact, eager);
  const auto sequences = prompts(5, graphs->vocab_size());
  const auto want = run_sequences(*graphs, sequences, {1});
  for (const int64_t chunk : {1, 1 << 20}) {
    const auto got = run_sequences(*calls, sequences, {chunk});
    for (size_t s = 0; s < sequences.size(); ++s) EXPECT_EQ(difference(got[s], want[s]), "") << chunk << ", " << s;
  }
  EXPECT_GT(graphs->num_graphs(), 0);
  EXPECT_EQ(calls->num_graphs(), 0);
}

// Kernels that make what the one before them could, against a launch a step: token by token, 1 to 6 sequences at once
// (from the fifth on nothing is joined).
void expect_joining_changes_no_bit(DeviceModel& joined, DeviceModel& apart) {
  const auto sequences = prompts(6, joined.vocab_size());
  for (size_t count = 1; count <= sequences.size(); ++count) {
    const std::vector<std::vector<int32_t>> some(sequences.begin(), sequences.begin() + static_cast<ptrdiff_t>(count));
    const auto got = run_sequences(joined, some, {1}), want = run_sequences(apart, some, {1});
    for (size_t s = 0; s < count; ++s) EXPECT_EQ(difference(got[s], want[s]), "") << count << " sequences, " << s;
  }
}

TEST_F(DeviceModelTest, JoinedStepsChangeNoBit) {
  model::DeviceOptions options;
  options.joins_steps = false;
  for (const bool graphs : {false, true}) {
    options.graphs = graphs;
    expect_joining_changes_no_bit(*on_gpu(abacus("w4a8")), *on_gpu(abacus("w4a8"), Numerics::kExact, options));
  }
}

// Layers of Qwen3-30B-A3B.
TEST_F(DeviceModelTest, JoinedStepsOfALargeLayerChangeNoBit) {
  model::ModelConfig config = on_gpu(abacus("w4a8"))->config();
  config.hidden_size = 2048;
  config.num_heads = 32;
  config.num_kv_heads = 4;
  config.head_dim = 128;
  config.expert_width = 768;
  config.router.num_experts = 128;
  config.router.top_k = 8;
  model::LoadOptions options = options_of({"", Numerics::kExact, Rounding::kBf16});
  options.cache_pages = 64;
  model::DeviceOptions device;
  device.table = must(kernels::device_table());
  const auto joined = must(DeviceModel::random(config, {}, options, device));
  device.joins_steps = false;
  const auto apart = must(DeviceModel::random(config, {}, options, device));
  expect_joining_changes_no_bit(*joined, *apart);
}

int32_t argmax(const float* row, int64_t width) {
  return static_cast<int32_t>(std::max_element(row, row + width) - row);
}

// Greedy answers whose ids never come to the host before they are read, against run() and a choice on the host.
TEST_F(DeviceModelTest, EnqueuedStepsChooseTheSameTokens) {
  constexpr int64_t kSequences = 5, kAnswer = 40;
  const auto gpu = on_gpu(abacus("w4a8"));
  const auto starts = prompts(kSequences, gpu->vocab_size());
  std::vector<std::vector<int32_t>> want = starts;
  for (auto& sequence : want) {
    for (int64_t i = 0; i < kAnswer; ++i) {
      const Tensor logits = run_sequences(*gpu, {sequence}, {1 << 20, false})[0];
      sequence.push_back(argmax(logits.row(0), logits.width()));
    }
  }
  constexpr int64_t kStride = 4;
  std::vector<int32_t> pages(kSequences * kStride);
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(pages.size() - 1 - i);
  std::vector<int32_t> ids, positions, rows_of, wanted;
  for (int32_t s = 0; s < kSequences; ++s) {
    for (size_t i = 0; i < starts[static_cast<size_t>(s)].size(); ++i) {
      ids.push_back(starts[static_cast<size_t>(s)][i]);
      positions.push_back(static_cast<int32_t>(i));
      rows_of.push_back(s);
    }
    wanted.push_back(static_cast<int32_t>(ids.size()) - 1);
  }
  must(gpu->enqueue({ids, positions, rows_of, pages, kStride, wanted}, {}, {}));
  std::vector<std::vector<int32_t>> got = starts;
  const auto collect = [&] {
    const auto tokens = must(gpu->collect());
    for (size_t s = 0; s < got.size(); ++s) got[s].push_back(tokens[s]);
  };
  const std::vector<int32_t> unknown(kSequences, 0), taken = {0, 1, 2, 3, 4};
  for (int64_t i = 1; i < kAnswer; ++i) {
    std::vector<int32_t> at(kSequences);
    for (size_t s = 0; s < at.size(); ++s) at[s] = static_cast<int32_t>(starts[s].size()) + static_cast<int32_t>(i) - 1;
    must(gpu->enqueue({unknown, at, taken, pages, kStride, taken}, taken, {}));
    collect();
  }
  collect();
  EXPECT_EQ(got, want);
}

TEST_F(DeviceModelTest, TooLittleMemoryIsToldBeforeACopy) {
  model::DeviceOptions device;
  device.table = must(kernels::device_table());
  device.gpu_memory.bytes = 1 << 20;
  const auto model = DeviceModel::load(abacus("w4a8"), options_of({"", Numerics::kExact, Rounding::kBf16}), device);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.error().code, ErrorCode::kCapacity);
  EXPECT_NE(model.error().message.find("1048576"), std::string::npos) << model.error().message;
}

// Weights that are made on the GPU give finite logits that differ from token to token.
TEST_F(DeviceModelTest, RandomWeightsKeepActivationsInRange) {
  model::ModelConfig config = on_gpu(abacus("w4a8"))->config();
  model::LoadOptions options = options_of({"", Numerics::kExact, Rounding::kBf16});
  model::DeviceOptions device;
  device.table = must(kernels::device_table());
  const auto gpu = must(DeviceModel::random(config, {}, options, device));
  const auto logits = run_sequences(*gpu, prompts(2, gpu->vocab_size()));
  for (const Tensor& tensor : logits) {
    for (int64_t t = 0; t < tensor.rows(); ++t) {
      const double rms = row_rms(tensor.row(t), tensor.width());
      EXPECT_GT(rms, 0.1);
      EXPECT_LT(rms, 10);
    }
  }
}

}  // namespace
}  // namespace quadrille::testing
