// SPDX-License-Identifier: Apache-2.0
// The grouped W4A8 product on the device against the CPU table `hopper`, bit for bit: every arithmetic, group and tile,
// ragged rows, empty experts, shapes that fill no record.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "device/device.h"
#include "kernels/api/device_table.h"
#include "kernels/api/registry.h"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp8_e4m3.h"
#include "prepare/prepare_hopper.h"
#include "prepare/prepare_w4.h"

namespace quadrille {
namespace {

using kernels::Numerics;

struct GemmCase {
  const char* name;
  Numerics numerics;
  int64_t group_size, n, k;
  std::vector<int64_t> rows;  // of each expert
  kernels::GemmOutput output = kernels::GemmOutput::kRowsF32;
  numerics::ActivationRule activation = {};
  bool bias = false;
  bool extreme_scales = false;  // rows whose factor overflows or vanishes
};

void PrintTo(const GemmCase& c, std::ostream* out) {
  *out << c.name << " n " << c.n << " k " << c.k << " group " << c.group_size;
}

std::vector<GemmCase> gemm_cases() {
  std::vector<GemmCase> cases;
  using enum kernels::GemmOutput;
  using numerics::Activation;
  for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
    for (const int64_t group : {32, 64, 128, 0}) {
      cases.push_back({"ragged", numerics, group, 256, 512, {3, 0, 17, 1, 130}});
      cases.push_back({"narrow", numerics, group, 8, group == 0 ? 40 : 128, {1, 2, 9}});
      cases.push_back({"odd_blocks", numerics, group, 200, 384, {65, 7}, kRowsBf16, {}, true});
      cases.push_back({"gated", numerics, group, 2 * 104, 640, {33, 0, 5}, kActivated, {}, true});
      cases.push_back({"clamped", numerics, group, 2 * 64, 256, {12}, kActivated, {Activation::kClampedSwiglu}, true});
      cases.push_back({"gelu", numerics, group, 2 * 64, 256, {12}, kActivated, {Activation::kGeluTanh}});
      cases.push_back({"relu2", numerics, group, 72, 256, {12, 140}, kActivated, {Activation::kRelu2}});
      if (group != 128) cases.push_back({"half_record", numerics, group, 128, 2880, {20, 64}});
      cases.push_back({"long_k", numerics, group, 64, 7168, {4, 40}});
      // Token tiles of one half and of both, full and ragged; a tile of the list in several parts where the kernel's is
      // smaller; more items than pairs of CTAs.
      cases.push_back({"wide", numerics, group, 328, 384, {161, 0, 112, 333, 80}, kRowsBf16, {}, true, true});
      cases.push_back({"wide_gated", numerics, group, 2 * 168, 256, {81, 162}, kActivated, {}, true, true});
      cases.push_back({"wide_relu2", numerics, group, 72, 128, {113, 240}, kActivated, {Activation::kRelu2}});
      cases.push_back({"one_expert", numerics, group, 328, 1664, {21}, kActivated, {Activation::kRelu2}, true});
    }
    // More items than clusters of four fit the GPU; a matrix of a decode step.
    cases.push_back({"many_items", numerics, 128, 2048, 1024, {1, 8, 3}, kRowsBf16});
    cases.push_back({"wide_items", numerics, 128, 1800, 256, {1200, 6, 170}});
    cases.push_back({"one_row", numerics, 128, 2048, 4096, {1}, kRowsBf16});
  }
  return cases;
}

// Everything of a case on the host, with the expected values.
struct Host {
  std::vector<uint8_t> weights;
  std::vector<float> channel_scale, bias;
  int64_t expert_stride = 0;
  std::vector<uint8_t> act;
  std::vector<float> act_scale;
  std::vector<kernels::TokenTile> tiles;
  int64_t num_rows = 0, pitch = 0, out_width = 0, padded_n = 0;
  std::vector<float> expected;  // [num_rows, out_width], bf16 values where the output is bf16
};

struct Canonical {
  std::vector<uint32_t> packed;
  std::vector<uint16_t> scales;
};

Canonical random_matrix(const GemmCase& c, int64_t n, std::mt19937& random) {
  Canonical m;
  m.packed.resize(static_cast<size_t>(n * c.k / 8));
  for (auto& word : m.packed) word = random();
  const int64_t groups = layout::num_groups(c.k, c.group_size);
  std::lognormal_distribution<float> scale(-4.0f, 1.0f);
  m.scales.resize(static_cast<size_t>(n * groups));
  for (auto& s : m.scales) s = numerics::bf16_from_f32(random() % 16 == 0 ? -scale(random) : scale(random));
  return m;
}

float expected_value(const GemmCase& c, float gate, float up) {
  switch (c.output) {
    case kernels::GemmOutput::kRowsF32:
      return gate;
    case kernels::GemmOutput::kRowsBf16:
      return numerics::round_to_bf16(gate);
    default:
      return c.numerics == Numerics::kExact ? numerics::activation_exact(c.activation, gate, up)
                                            : numerics::activation_vllm(c.activation, gate, up);
  }
}

void add_activations(const GemmCase& c, Host& h, std::mt19937& random) {
  h.pitch = layout::ceil_div(c.k, layout::kRecordK) * layout::kRecordK;
  h.act.assign(static_cast<size_t>(h.num_rows * h.pitch), 0);
  std::normal_distribution<float> normal(0.0f, 60.0f);
  for (int64_t r = 0; r < h.num_rows; ++r) {
    for (int64_t i = 0; i < c.k; ++i) h.act[r * h.pitch + i] = numerics::e4m3_from_f32(normal(random));
    h.act_scale.push_back(std::ldexp(1.0f + 0.001f * static_cast<float>(random() % 1000), -8));
  }
  if (c.extreme_scales) {
    h.act_scale[5] = std::numeric_limits<float>::infinity();
    h.act_scale[6] = 0x1p-140f;
    h.act_scale[7] = 0x1p+100f;
    h.act_scale[8] = 0x1p-60f;
  }
  // One row holds a NaN, another every code once more.
  if (h.num_rows > 2) h.act[2 * h.pitch + c.k / 2] = numerics::kCanonicalNanE4m3;
  for (int64_t i = 0; i < c.k && h.num_rows > 3; ++i) h.act[3 * h.pitch + i] = static_cast<uint8_t>(i % 127);
}

void add_expected(const GemmCase& c, const std::vector<prepare::PreparedW4>& prepared, int64_t offset_rows, Host& h) {
  const auto table = kernels::select_table("hopper");
  ThreadPool pool(0);
  Arena scratch;
  std::vector<uint8_t> act(static_cast<size_t>(h.num_rows * c.k));
  for (int64_t r = 0; r < h.num_rows; ++r) std::memcpy(&act[r * c.k], &h.act[r * h.pitch], c.k);
  std::vector<int64_t> offsets{0};
  std::vector<kernels::W4Matrix> views;
  std::vector<const float*> bias;
  for (size_t e = 0; e < c.rows.size(); ++e) {
    offsets.push_back(offsets.back() + c.rows[e]);
    views.push_back(prepared[e].view());
    bias.push_back(h.bias.data() + e * offset_rows);
  }
  std::vector<float> y(static_cast<size_t>(h.num_rows * c.n));
  kernels::W4A8Gemm p;
  p.numerics = c.numerics;
  p.n = c.n;
  p.k = c.k;
  p.group_size = c.group_size;
  p.rows = {static_cast<int64_t>(c.rows.size()), offsets.data(), nullptr};
  p.weights = views.data();
  p.act = act.data();
  p.act_scale = h.act_scale.data();
  p.bias = c.bias ? bias.data() : nullptr;
  p.out = y.data();
  (*table)->w4a8_gemm(p, {&pool, &scratch});
  const bool gated = c.output == kernels::GemmOutput::kActivated && c.activation.gated();
  h.out_width = gated ? c.n / 2 : c.n;
  for (int64_t r = 0; r < h.num_rows; ++r) {
    for (int64_t i = 0; i < h.out_width; ++i) {
      h.expected.push_back(expected_value(c, y[r * c.n + i], gated ? y[r * c.n + c.n / 2 + i] : 0.0f));
    }
  }
}

Host make_host(const GemmCase& c) {
  std::mt19937 random(static_cast<uint32_t>(c.n * 31 + c.k * 7 + c.group_size + static_cast<int>(c.numerics)));
  Host h;
  for (const int64_t rows : c.rows) h.num_rows += rows;
  add_activations(c, h, random);
  const bool gated = c.output == kernels::GemmOutput::kActivated && c.activation.gated();
  const int parts = gated ? 2 : 1;
  std::vector<prepare::PreparedW4> prepared;
  std::vector<float> plain_bias;
  for (size_t e = 0; e < c.rows.size(); ++e) {
    std::vector<Canonical> matrices;
    std::vector<prepare::CanonicalW4> views;
    for (int part = 0; part < parts; ++part) matrices.push_back(random_matrix(c, c.n / parts, random));
    for (const auto& m : matrices) {
      prepare::CanonicalW4 view;
      view.n = c.n / parts;
      view.k = c.k;
      view.group_size = c.group_size;
      view.packed = m.packed.data();
      view.scales = m.scales.data();
      views.push_back(view);
    }
    prepared.push_back(std::move(prepare::prepare_w4(views, c.numerics, nullptr)).value());
    const auto device = std::move(prepare::prepare_hopper_w4(views, c.numerics)).value();
    h.padded_n = device.map.padded_n();
    h.expert_stride = layout::ceil_div(device.map.num_bytes(), 128) * 128;
    h.weights.insert(h.weights.end(), device.weights.begin(), device.weights.end());
    h.weights.resize((e + 1) * h.expert_stride);
    h.channel_scale.insert(h.channel_scale.end(), device.channel_scale.begin(), device.channel_scale.end());
    for (int64_t i = 0; i < c.n; ++i) plain_bias.push_back(0.01f * static_cast<float>(random() % 1000) - 5.0f);
  }
  h.bias = plain_bias;
  add_expected(c, prepared, c.n, h);
  // The device wants the bias in the order of the prepared rows.
  h.bias.assign(c.rows.size() * h.padded_n, 0.0f);
  for (size_t e = 0; e < c.rows.size(); ++e) {
    for (int64_t row = 0; row < c.n; ++row) {
      const auto from = layout::deinterleave_row(row);
      h.bias[e * h.padded_n + row] = plain_bias[e * c.n + (gated ? from.part * c.n / 2 + from.row : row)];
    }
  }
  return h;
}

void cut_tiles(const GemmCase& c, int32_t tokens, Host& h) {
  h.tiles.clear();
  int32_t first = 0;
  for (size_t e = 0; e < c.rows.size(); ++e) {
    const int32_t first_tile = static_cast<int32_t>(h.tiles.size());
    const int32_t count = static_cast<int32_t>((c.rows[e] + tokens - 1) / tokens);
    for (int32_t i = 0; i < count; ++i) {
      const int32_t left = static_cast<int32_t>(c.rows[e]) - i * tokens;
      h.tiles.push_back({static_cast<int32_t>(e), first + i * tokens, std::min(left, tokens), first_tile, count, {}});
    }
    first += static_cast<int32_t>(c.rows[e]);
  }
}

template <typename T>
device::Buffer upload(const std::vector<T>& host, device::Stream stream) {
  const size_t bytes = host.size() * sizeof(T);
  auto buffer = std::move(device::Buffer::allocate(std::max<size_t>(bytes, 256), stream)).value();
  if (bytes > 0) {
    EXPECT_TRUE(device::copy_to_device(buffer.get(), host.data(), bytes, stream).ok());
  }
  return buffer;
}

class DeviceGemm : public ::testing::TestWithParam<GemmCase> {};

enum class List { kWrittenJustBefore, kOlder, kOfTheHost };

std::vector<float> run_on_device(const GemmCase& c, const Host& h, int32_t config, List list, device::Stream stream) {
  const auto table = kernels::device_table();
  const auto weights = upload(h.weights, stream);
  const auto channel = upload(h.channel_scale, stream);
  const auto bias = upload(h.bias, stream);
  const auto act = upload(h.act, stream);
  const auto scale = upload(h.act_scale, stream);
  const auto tiles = upload(h.tiles, stream);
  const auto count = upload(std::vector<int32_t>{static_cast<int32_t>(h.tiles.size())}, stream);
  const bool wide = c.output == kernels::GemmOutput::kRowsF32;
  const size_t values = static_cast<size_t>(h.num_rows * h.out_width);
  std::vector<uint16_t> narrow_out(values);
  std::vector<float> out(values);
  const size_t bytes = values * (wide ? 4 : 2);
  const auto result = std::move(device::Buffer::allocate(bytes, stream)).value();
  EXPECT_TRUE(device::fill(result.get(), 0xff, bytes, stream).ok());
  kernels::DeviceW4A8Gemm p;
  p.numerics = c.numerics;
  p.n = c.n;
  p.k = c.k;
  p.group_size = c.group_size;
  p.num_experts = static_cast<int64_t>(c.rows.size());
  p.list = {tiles.as<kernels::TokenTile>(), count.as<int32_t>(), static_cast<int64_t>(h.tiles.size()), 0};
  p.weights = weights.as<uint8_t>();
  p.expert_stride = h.expert_stride;
  p.channel_scale = channel.as<float>();
  p.bias = c.bias ? bias.as<float>() : nullptr;
  p.act = act.as<uint8_t>();
  p.act_rows = h.num_rows;
  p.act_pitch = h.pitch;
  p.act_scale = scale.as<float>();
  p.output = c.output;
  p.activation = c.activation;
  p.out = result.get();
  p.out_pitch = h.out_width;
  p.config = config;
  p.list_is_older = list == List::kOlder;
  if (list == List::kOfTheHost) p.list = {nullptr, nullptr, 0, h.num_rows};
  (*table)->w4a8_gemm(p, stream);
  void* target = wide ? static_cast<void*>(out.data()) : static_cast<void*>(narrow_out.data());
  EXPECT_TRUE(device::copy_to_host(target, result.get(), bytes, stream).ok());
  EXPECT_TRUE(device::synchronize(stream).ok());
  for (size_t i = 0; !wide && i < values; ++i) out[i] = numerics::bf16_to_f32(narrow_out[i]);
  return out;
}

void expect_bits(const Host& h, const std::vector<float>& out, const char* tile) {
  size_t different = 0, first = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    if (numerics::bits_of(out[i]) == numerics::bits_of(h.expected[i])) continue;
    if (different++ == 0) first = i;
  }
  EXPECT_EQ(different, 0u) << tile << ": " << different << " of " << out.size() << " differ, first row "
                           << first / h.out_width << " column " << first % h.out_width << ": found " << std::hexfloat
                           << out[first] << " expected " << h.expected[first];
}

TEST_P(DeviceGemm, EqualsHopper) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const GemmCase& c = GetParam();
  Host h = make_host(c);
  const auto stream = std::move(device::OwnedStream::create()).value();
  const auto configs = (*kernels::device_table())->w4a8_configs();
  for (size_t config = 0; config < configs.size(); ++config) {
    cut_tiles(c, configs[config].tokens, h);
    for (const List list : {List::kWrittenJustBefore, List::kOlder, List::kOfTheHost}) {
      if (list == List::kOfTheHost && c.rows.size() > 1) continue;
      expect_bits(h, run_on_device(c, h, static_cast<int32_t>(config), list, stream.get()), configs[config].name);
    }
  }
}

// The choice says nothing about results; it decides whether a decode step keeps all multiprocessors busy. No GPU
// needed.
TEST(GemmChoice, ShortGridsShareTheRecords) {
  const auto* table = kernels::device_table().value();
  const auto chosen = [&](int64_t n, int64_t k, int64_t experts, int64_t rows, Numerics numerics) -> std::string {
    return table->w4a8_configs()[table->choose_w4a8(n, k, experts, rows, numerics, 128)].name;
  };
  EXPECT_EQ(chosen(2048, 4096, 1, 1, Numerics::kExact), "64x8/16");
  EXPECT_EQ(chosen(2048, 4096, 1, 16, Numerics::kExact), "64x16/8");
  EXPECT_EQ(chosen(2048, 4096, 1, 64, Numerics::kExact), "64x16");
  EXPECT_EQ(chosen(5120, 2048, 1, 1, Numerics::kExact), "64x8/8");
  EXPECT_EQ(chosen(1536, 2048, 128, 8, Numerics::kExact), "64x8");  // enough items
  EXPECT_EQ(chosen(2048, 4096, 1, 1, Numerics::kVllm), "64x8");     // one chain over K
  EXPECT_EQ(chosen(128, 128, 1, 1, Numerics::kExact), "64x8");      // one stage: nothing to spread over CTAs
}

TEST(GemmChoice, ManyRowsTakeTheTileThatConvertsLeast) {
  const auto* table = kernels::device_table().value();
  const auto chosen = [&](int64_t n, int64_t k, int64_t experts, int64_t rows, Numerics numerics,
                          int64_t group) -> std::string {
    return table->w4a8_configs()[table->choose_w4a8(n, k, experts, rows, numerics, group)].name;
  };
  EXPECT_EQ(chosen(1536, 2048, 128, 32768, Numerics::kExact, 128), "128x160");
  EXPECT_EQ(chosen(5120, 2048, 1, 4096, Numerics::kExact, 0), "128x160");      // 8 waves of pairs against 10
  EXPECT_EQ(chosen(2048, 4096, 1, 4096, Numerics::kExact, 128), "128x128");    // 4 waves against 4
  EXPECT_EQ(chosen(1536, 2048, 128, 32768, Numerics::kExact, 64), "128x128");  // several sums a record
  EXPECT_EQ(chosen(1536, 2048, 128, 32768, Numerics::kVllm, 128), "128x128");  // one chain over K
}

INSTANTIATE_TEST_SUITE_P(Shapes, DeviceGemm, ::testing::ValuesIn(gemm_cases()), [](const auto& param_info) {
  const GemmCase& c = param_info.param;
  return std::string(c.numerics == Numerics::kExact ? "exact_" : "vllm_") + c.name + "_g" +
         std::to_string(c.group_size);
});

}  // namespace
}  // namespace quadrille
