// SPDX-License-Identifier: Apache-2.0
// The masked layout (rows that came quantised in 1 x 128 blocks) on the device against run_masked_experts with the
// table `hopper` on a few rows of a few experts, and over all rows tile against tile. What lies behind an expert's rows
// is poison that no kernel may let through, and stays.
#include <gtest/gtest.h>

#include <algorithm>

#include "device/compare_bits.h"
#include "device/device_stack.h"
#include "device/fill.h"
#include "device/hopper_layer.h"
#include "device/random_data.h"
#include "kernels/api/registry.h"
#include "moe/masked_layer.h"
#include "numerics/bf16.h"

namespace quadrille::testing {
namespace {

struct MaskedSpec {
  int64_t max_m;
  LayerSpec layer;  // experts, hidden, width, group, activation, bias, seed

  std::string name() const { return fmt::format("M{}_{}", max_m, layer.name()); }
};
void PrintTo(const MaskedSpec& spec, std::ostream* out) {
  *out << spec.name();
}

MaskedSpec masked_spec(int64_t max_m, int64_t experts, HiddenWidth shape, int64_t group, int turn) {
  MaskedSpec spec;
  spec.max_m = max_m;
  spec.layer.experts = experts;
  spec.layer.hidden = shape.hidden;
  spec.layer.width = shape.width;
  spec.layer.group = group;
  spec.layer.activation = static_cast<kernels::Activation>(turn % 4);
  spec.layer.bias = turn % 2 == 1;
  spec.layer.seed = 7000 + static_cast<uint64_t>(turn);
  return spec;
}

std::vector<MaskedSpec> masked_specs() {
  return {masked_spec(1, 4, {128, 256}, 128, 0),      masked_spec(16, 8, {512, 512}, 64, 1),
          masked_spec(64, 16, {2048, 768}, 128, 2),   masked_spec(33, 60, {2880, 2880}, 32, 3),
          masked_spec(128, 32, {7168, 2048}, 128, 4), masked_spec(222, 9, {4096, 1408}, 0, 5),
          masked_spec(1024, 2, {2560, 640}, 128, 6),  masked_spec(0, 4, {512, 512}, 128, 7)};
}
std::vector<MaskedSpec> sanitize_specs() {
  return {masked_spec(9, 5, {272, 72}, 0, 8), masked_spec(17, 3, {192, 128}, 64, 9),
          masked_spec(4, 6, {128, 96}, 32, 10), masked_spec(33, 2, {256, 128}, 128, 11)};
}

class MaskedConformance : public ::testing::TestWithParam<MaskedSpec> {
 protected:
  static constexpr int64_t kCpuExperts = 2, kCpuRows = 6;

  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
    stream_ = owned_->get();
    table_ = must(kernels::device_table());
    make_inputs();
    const LayerSpec& spec = GetParam().layer;
    layer_.rule = spec.rule();
    layer_.experts.hidden = spec.hidden;
    layer_.experts.width = spec.width;
    layer_.experts.activation = spec.activation_rule();
    layer_.experts.gate_up = make_device_stack(*table_, gate_up_stack(spec, false), &memory_, stream_);
    layer_.experts.down = make_device_stack(*table_, down_stack(spec, false), &memory_, stream_);
  }

  int64_t blocks() const { return (GetParam().layer.hidden + 127) / 128; }

  // Counts: none, one, all, something; codes and scales with poison behind them.
  void make_inputs() {
    const LayerSpec& spec = GetParam().layer;
    const int64_t max_m = GetParam().max_m;
    for (int64_t e = 0; e < spec.experts; ++e) {
      const int64_t counts[] = {
          max_m, 0, std::min<int64_t>(1, max_m),
          static_cast<int64_t>(hash(31, static_cast<uint64_t>(e)) % static_cast<uint64_t>(max_m + 1))};
      masked_m_.push_back(static_cast<int32_t>(counts[e % 4]));
    }
    act_.assign(static_cast<size_t>(spec.experts * max_m * spec.hidden), 0x7f);
    act_scale_.assign(static_cast<size_t>(spec.experts * blocks() * max_m), std::numeric_limits<float>::quiet_NaN());
    for (int64_t e = 0; e < spec.experts; ++e) {
      for (int64_t m = 0; m < masked_m_[static_cast<size_t>(e)]; ++m) {
        const int64_t row = e * max_m + m;
        for (int64_t i = 0; i < spec.hidden; ++i) {
          act_[static_cast<size_t>(row * spec.hidden + i)] = e4m3_bits(spec.seed, row * spec.hidden + i);
        }
        for (int64_t b = 0; b < blocks(); ++b) {
          const uint64_t h = hash(hash(spec.seed, 32), static_cast<uint64_t>(row * blocks() + b));
          const float scale = static_cast<float>((h & 0xffffu) + 1) * 0x1p-20f;
          act_scale_[static_cast<size_t>((e * blocks() + b) * max_m + m)] = h >> 56 == 0 ? 0.0f : scale;
        }
      }
    }
  }

  std::vector<uint16_t> run(int32_t config1, int32_t config2) {
    const LayerSpec& spec = GetParam().layer;
    PoolMemory memory;
    moe::DeviceMaskedBatch batch;
    batch.max_m = GetParam().max_m;
    auto* act = memory.take<uint8_t>(static_cast<int64_t>(act_.size()), 16, stream_);
    must(device::copy_to_device(act, act_.data(), act_.size(), stream_));
    batch.act = act;
    batch.act_scale = memory.copy_of(act_scale_, stream_);
    batch.masked_m = memory.copy_of(masked_m_, stream_);
    const int64_t count = spec.experts * batch.max_m * spec.hidden;
    batch.out = memory.take<uint16_t>(count, 16, stream_);
    // Poisoned also where other memory is not: the rows behind masked_m are looked at.
    must(device::fill(batch.out, kPoison, static_cast<size_t>(count) * sizeof(uint16_t), stream_));
    const size_t size = moe::masked_workspace_bytes(layer_, batch.max_m);
    void* workspace = memory.take_bytes(size, 256, kPoison, stream_);
    auto* status = memory.take<uint32_t>(1, 4, stream_, 0);
    moe::DeviceStreams streams;
    streams.main = stream_;
    must(moe::run_masked_layer(*table_, layer_, batch, workspace, size, streams, status, {config1, config2}));
    const auto out = on_host<uint16_t>(batch.out, count, stream_);
    EXPECT_EQ(on_host<uint32_t>(status, 1, stream_)[0], 0u);
    EXPECT_EQ(memory.harmed(stream_), "");
    return out;
  }

  // Rows behind an expert's count hold the poison, the others do not.
  void check_written(const std::vector<uint16_t>& out) {
    const int64_t hidden = GetParam().layer.hidden, max_m = GetParam().max_m;
    int64_t missing = 0, harmed = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / hidden;
      const bool there = row % max_m < masked_m_[static_cast<size_t>(row / max_m)];
      missing += there && out[i] == 0xffff ? 1 : 0;
      harmed += !there && out[i] != 0xffff ? 1 : 0;
    }
    EXPECT_EQ(missing, 0) << "not written";
    EXPECT_EQ(harmed, 0) << "written behind masked_m";
  }

  void compare_with_hopper(const std::vector<uint16_t>& out) {
    const LayerSpec& spec = GetParam().layer;
    const int64_t max_m = GetParam().max_m;
    ThreadPool pool;
    std::vector<int64_t> experts;
    for (int64_t e = 0; e < spec.experts && experts.size() < kCpuExperts; ++e) {
      const bool last = e + 1 == spec.experts;
      if (masked_m_[static_cast<size_t>(e)] > 0 && (experts.empty() || e > spec.experts / 2 || last))
        experts.push_back(e);
    }
    if (experts.empty()) return;
    const CpuStack gate_up = make_cpu_stack(gate_up_stack(spec, false), experts, &pool);
    const CpuStack down = make_cpu_stack(down_stack(spec, false), experts, &pool);
    const moe::GatedMlp mlp{spec.hidden, spec.width, spec.activation_rule(), gate_up.linear, down.linear};

    const int64_t rows = std::min(max_m, kCpuRows);
    std::vector<uint8_t> act;
    std::vector<float> act_scale;
    std::vector<int32_t> counts;
    for (int64_t e : experts) {
      counts.push_back(static_cast<int32_t>(std::min<int64_t>(rows, masked_m_[static_cast<size_t>(e)])));
      const auto from = act_.begin() + e * max_m * spec.hidden;
      act.insert(act.end(), from, from + rows * spec.hidden);
      for (int64_t b = 0; b < blocks(); ++b) {
        const auto scales = act_scale_.begin() + (e * blocks() + b) * max_m;
        act_scale.insert(act_scale.end(), scales, scales + rows);
      }
    }
    Arena scratch;
    moe::Execution execution;
    execution.table = must(kernels::select_table("hopper"));
    execution.kernels = {&pool, &scratch};
    std::vector<float> expected(experts.size() * static_cast<size_t>(rows * spec.hidden), 0.0f);
    must(moe::run_masked_experts(mlp, {rows, act.data(), act_scale.data(), counts.data()}, execution, expected.data()));
    for (size_t place = 0; place < experts.size(); ++place) {
      const int64_t count = counts[place] * spec.hidden;
      std::vector<uint16_t> codes;
      const auto from = expected.begin() + static_cast<int64_t>(place) * rows * spec.hidden;
      for (auto value = from; value != from + count; ++value) codes.push_back(numerics::bf16_from_f32(*value));
      const auto found = out.begin() + experts[place] * max_m * spec.hidden;
      EXPECT_EQ(bit_differences(std::vector<uint16_t>(found, found + count), codes, spec.hidden), "")
          << "expert " << experts[place];
    }
  }

  std::optional<device::OwnedStream> owned_;
  device::Stream stream_;
  const kernels::DeviceTable* table_ = nullptr;
  PoolMemory memory_;
  moe::DeviceMoeLayer layer_;
  std::vector<int32_t> masked_m_;
  std::vector<uint8_t> act_;
  std::vector<float> act_scale_;
};

TEST_P(MaskedConformance, EqualsHopper) {
  const auto base = run(-1, -1);
  check_written(base);
  compare_with_hopper(base);
  const auto configs = table_->w4a8_configs();
  for (size_t first = 0; first < configs.size(); ++first) {
    if (!configs[first].block_scales) continue;
    const size_t second = (first + GetParam().layer.seed) % configs.size();
    EXPECT_EQ(
        bit_differences(run(static_cast<int32_t>(first), static_cast<int32_t>(second)), base, GetParam().layer.hidden),
        "")
        << configs[first].name << " and " << configs[second].name;
  }
  EXPECT_EQ(memory_.harmed(stream_), "");
}

std::string masked_name(const ::testing::TestParamInfo<MaskedSpec>& info) {
  return info.param.name();
}
INSTANTIATE_TEST_SUITE_P(Field, MaskedConformance, ::testing::ValuesIn(masked_specs()), masked_name);
INSTANTIATE_TEST_SUITE_P(Sanitize, MaskedConformance, ::testing::ValuesIn(sanitize_specs()), masked_name);

}  // namespace
}  // namespace quadrille::testing
