// SPDX-License-Identifier: Apache-2.0
// What an observer of a model on a GPU is shown, stage by stage, against the CPU's table `hopper`: from equal input
// every W4A8 layer has the same bits, codes, rows and routes. Attention alone adds in an order of its own: what it
// gives is replaced by the CPU's once it has been compared, so that the next module begins from equal input again.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "device/device.h"
#include "device/must.h"
#include "model/device_model.h"
#include "moe/layer_observer.h"
#include "unit/model/golden_model.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using model::DeviceModel;
using model::Module;

struct Record {
  int64_t layer;
  Module module;
  std::string stage;
  std::vector<std::byte> data;

  std::string text() const { return fmt::format("layer {}, module {}, {}", layer, static_cast<int>(module), stage); }
};

int64_t bytes_of(moe::StageType type) {
  if (type == moe::StageType::kE4M3) return 1;
  return type == moe::StageType::kI64 ? 8 : 4;
}

// Both sides' observer: what comes, by name.
class Watcher : public model::StepObserver {
 public:
  bool wants_stages() const override { return true; }
  void stage(int64_t layer, Module module, const moe::Stage& stage) override {
    int64_t count = 1;
    for (const int64_t extent : stage.shape) count *= extent;
    see(layer, module, stage.name, stage.data, count * bytes_of(stage.type));
  }
  void router(int64_t layer, const float* logits, const int32_t* ids, const float* weights, int64_t tokens,
              int64_t experts, int64_t top_k) override {
    see(layer, Module::kExperts, "router_logits", logits, tokens * experts * 4);
    see(layer, Module::kExperts, "router_ids", ids, tokens * top_k * 4);
    see(layer, Module::kExperts, "router_weights", weights, tokens * top_k * 4);
  }
  void moe_block(int64_t layer, const float* input, const float*, int64_t tokens, int64_t width) override {
    see(layer, Module::kExperts, "moe_input", input, tokens * width * 4);
  }
  void update(int64_t layer, Module module, float* y, int64_t tokens, int64_t width) override {
    see(layer, module, "update", y, tokens * width * 4);
    replace(y);
  }
  void hidden(int64_t layer, const float* x, int64_t tokens, int64_t width) override {
    see(layer, Module::kFeedForward, "hidden", x, tokens * width * 4);
  }

 protected:
  virtual void see(int64_t layer, Module module, const char* stage, const void* data, int64_t bytes) = 0;
  virtual void replace(float*) {}
};

class Recorder final : public Watcher {
 public:
  std::vector<Record> records;

 private:
  void see(int64_t layer, Module module, const char* stage, const void* data, int64_t bytes) override {
    // The GPU's first product activates in its epilogue.
    if (std::string_view(stage) == "gemm1_out") return;
    const auto* from = static_cast<const std::byte*>(data);
    records.push_back({layer, module, stage, {from, from + bytes}});
  }
};

class Comparer final : public Watcher {
 public:
  explicit Comparer(const std::vector<Record>& want) : want_(want) {}
  size_t seen() const { return at_; }
  int64_t equal = 0;
  double attention_error = 0;  // largest of a row's rms, relative
  std::vector<std::string> different;

 private:
  void see(int64_t layer, Module module, const char* stage, const void* data, int64_t bytes) override {
    ASSERT_LT(at_, want_.size()) << stage;
    const Record& want = want_[at_++];
    const Record got{layer, module, stage, {}};
    ASSERT_EQ(got.text(), want.text());
    ASSERT_EQ(static_cast<size_t>(bytes), want.data.size()) << got.text();
    if (std::memcmp(data, want.data.data(), want.data.size()) == 0) {
      ++equal;
      return;
    }
    const bool is_mixed = module == Module::kAttention && (want.stage == "update" || want.stage[0] == 'a');
    if (!is_mixed) {
      different.push_back(got.text());
    } else if (want.stage == "update") {
      const auto* a = static_cast<const float*>(data);
      const auto* b = reinterpret_cast<const float*>(want.data.data());
      const auto count = static_cast<int64_t>(want.data.size() / sizeof(float));
      attention_error = std::max(attention_error, rms_difference(a, b, count) / row_rms(b, count));
    }
  }
  void replace(float* y) override { std::memcpy(y, want_[at_ - 1].data.data(), want_[at_ - 1].data.size()); }

  const std::vector<Record>& want_;
  size_t at_ = 0;
};

class DeviceStagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  }

  static std::unique_ptr<DeviceModel> on_gpu(const std::string& folder, Numerics numerics) {
    model::DeviceOptions device;
    device.table = must(kernels::device_table());
    return must(DeviceModel::load(folder, options_of({"", numerics, Rounding::kBf16}), device));
  }

  void expect_equal_stages(const std::string& folder, Numerics numerics) {
    SCOPED_TRACE(folder);
    const auto cpu = load_model(folder, options_of({"hopper", numerics, Rounding::kBf16}));
    const auto gpu = on_gpu(folder, numerics);
    ASSERT_NE(cpu, nullptr);
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 37; ++i) ids.push_back(i * 61 % static_cast<int32_t>(cpu->vocab_size()));
    Recorder recorder;
    cpu->set_observer(&recorder);
    run_sequences(*cpu, {ids}, {20});
    cpu->set_observer(nullptr);
    Comparer comparer(recorder.records);
    gpu->set_observer(&comparer);
    run_sequences(*gpu, {ids}, {20});
    gpu->set_observer(nullptr);
    EXPECT_EQ(comparer.seen(), recorder.records.size());
    EXPECT_TRUE(comparer.different.empty())
        << comparer.different.size() << " stages differ, the first: " << comparer.different[0];
    EXPECT_GT(comparer.equal, static_cast<int64_t>(recorder.records.size() * 3 / 4));
    // A few codes and roundings to bf16 apart.
    EXPECT_LT(comparer.attention_error, 0.05);
  }
};

// Layers that are W4A8 throughout; the routers' and the shared gates' dense sums are defined to the bit as well.
TEST_F(DeviceStagesTest, EqualTheTableHopper) {
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    expect_equal_stages(std::string(QD_SOURCE_DIR) + "/models/abacus/w4a8", numerics);
    for (const char* name : {"qwen2_moe/w4a8-g64", "olmoe_clip/w4a8-g64"}) {
      const auto folder = model_path(name);
      ASSERT_TRUE(folder.has_value());
      expect_equal_stages(*folder, numerics);
    }
  }
}

// What an observer looks at is what runs without one: the fused steps give the bits of the single ones.
TEST_F(DeviceStagesTest, ObservedStepsHaveTheSameBits) {
  for (const char* kind : {"w4a8", "bf16"}) {
    const auto gpu = on_gpu(std::string(QD_SOURCE_DIR) + "/models/abacus/" + kind, Numerics::kExact);
    std::vector<std::vector<int32_t>> sequences(3);
    for (int32_t i = 0; i < 41; ++i) sequences[static_cast<size_t>(i % 3)].push_back(i * 37 % 1900);
    for (const int64_t chunk : {int64_t{1}, int64_t{1} << 20}) {
      const auto plain = run_sequences(*gpu, sequences, {chunk});
      Recorder recorder;
      gpu->set_observer(&recorder);
      const auto observed = run_sequences(*gpu, sequences, {chunk});
      gpu->set_observer(nullptr);
      EXPECT_FALSE(recorder.records.empty());
      for (size_t s = 0; s < sequences.size(); ++s) EXPECT_EQ(observed[s].values, plain[s].values) << kind << ", " << s;
    }
  }
}

// An observer that changes what a layer adds changes what follows, as on the CPU.
TEST_F(DeviceStagesTest, AnUpdateMayBeReplaced) {
  class Silence final : public model::StepObserver {
   public:
    void update(int64_t, Module module, float* y, int64_t tokens, int64_t width) override {
      if (module != Module::kEmbedding) std::fill_n(y, tokens * width, 0.0f);
    }
    void hidden(int64_t, const float* x, int64_t tokens, int64_t width) override {
      streams.emplace_back(x, x + tokens * width);
    }
    std::vector<std::vector<float>> streams;
  };
  const auto gpu = on_gpu(std::string(QD_SOURCE_DIR) + "/models/abacus/w4a8", Numerics::kExact);
  Silence silence;
  gpu->set_observer(&silence);
  const Tensor silent = run_sequences(*gpu, {{5, 6, 7}})[0];
  gpu->set_observer(nullptr);
  ASSERT_EQ(silence.streams.size(), static_cast<size_t>(gpu->config().num_layers));
  for (const auto& stream : silence.streams) EXPECT_EQ(stream, silence.streams[0]);
  EXPECT_NE(run_sequences(*gpu, {{5, 6, 7}})[0].values, silent.values);
}

}  // namespace
}  // namespace quadrille::testing
