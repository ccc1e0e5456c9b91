// SPDX-License-Identifier: Apache-2.0
// Embedding, residual sum, RMSNorm and FP8 codes against the shared functions of numerics/, bit for bit: rows outside
// of the rank's vocabulary, NaN and infinities, selected rows, fp32 updates, rows that nobody may touch.
#include <gtest/gtest.h>

#include <optional>
#include <random>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "numerics/act_quant.h"
#include "numerics/elementwise.h"
#include "numerics/lane_sum.h"

namespace quadrille {
namespace {

using numerics::bf16_from_f32;
using numerics::bf16_to_f32;
using testing::bit_differences;
using testing::must;
using testing::on_host;
using testing::PoolMemory;

// Every fourth row is special: a NaN, an infinity, zeros, tiny or huge values.
std::vector<uint16_t> some_rows(int64_t rows, int64_t width, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<uint16_t> x;
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t kind = i / width % 4 == 3 ? i / width / 4 % 5 : -1;
    const float scale = kind == 3 ? 0x1p-70f : kind == 4 ? 0x1p100f : kind == 2 ? 0.0f : 1.0f;
    uint16_t code = bf16_from_f32(normal(random) * scale);
    if (i % width == width / 3 && kind == 0) code = 0xffc1;
    if (i % width == width / 3 && kind == 1) code = 0xff80;
    x.push_back(code);
  }
  return x;
}

class EmbedNormTest : public testing::TableTest {};

TEST_F(EmbedNormTest, RowsByIds) {
  for (const int64_t width : {8, 64, 2048, 7168}) {
    const int64_t first = 100, rows = 37;
    const auto table = some_rows(rows, width, 3);
    const std::vector<int32_t> ids = {100, 136, 137, 99, -1, 118, 0x7fffffff, 118};
    std::vector<uint16_t> expected;
    std::vector<uint32_t> expected_f32;
    for (const int32_t id : ids) {
      for (int64_t i = 0; i < width; ++i) {
        const bool held = id >= first && id < first + rows;
        expected.push_back(held ? table[static_cast<size_t>((id - first) * width + i)] : uint16_t{0x8000});
        expected_f32.push_back(static_cast<uint32_t>(expected.back()) << 16);
      }
    }
    PoolMemory memory;
    kernels::DeviceEmbed p;
    p.num_tokens = static_cast<int64_t>(ids.size());
    p.width = width;
    p.first_row = first;
    p.num_rows = rows;
    p.ids = memory.copy_of(ids, stream());
    p.table = memory.copy_of(table, stream());
    p.out = memory.take<uint16_t>(p.num_tokens * width, 16, stream());
    p.out_f32 = memory.take<float>(p.num_tokens * width, 16, stream());
    table_->embed(p, stream());
    const int64_t count = p.num_tokens * width;
    EXPECT_EQ(bit_differences(on_host<uint16_t>(p.out, count, stream()), expected, width), "");
    EXPECT_EQ(bit_differences(on_host<uint32_t>(p.out_f32, count, stream()), expected_f32, width), "");
    EXPECT_EQ(memory.harmed(stream()), "");
    p.num_tokens = 0;
    table_->embed(p, stream());
  }
}

enum class Update { kNone, kBf16, kF32 };
struct NormCase {
  int64_t tokens, width;
  Update update;
  bool selected, codes, normed;
};

struct Expected {
  std::vector<uint16_t> x, normed;
  std::vector<uint8_t> act;
  std::vector<uint32_t> scale;
};

void norm_row(const uint16_t* x, const std::vector<uint16_t>& weight, int64_t pitch, Expected* e) {
  const auto width = static_cast<int64_t>(weight.size());
  std::vector<float> row(weight.size());
  for (int64_t i = 0; i < width; ++i) row[static_cast<size_t>(i)] = bf16_to_f32(x[i]);
  const float r = numerics::rms_scale(numerics::lane_sum_squares(row.data(), width), width, 1e-6f);
  float absmax = 0.0f;
  for (size_t i = 0; i < row.size(); ++i) {
    row[i] = numerics::rms_norm_value(row[i], r, bf16_to_f32(weight[i]), true);
    absmax = numerics::absmax_step(absmax, row[i]);
    e->normed.push_back(bf16_from_f32(row[i]));
  }
  const float scale = numerics::act_scale_of_absmax(absmax);
  e->scale.push_back(numerics::bits_of(scale));
  for (int64_t i = 0; i < pitch; ++i) {
    e->act.push_back(i < width ? numerics::act_code(row[static_cast<size_t>(i)], scale) : uint8_t{0});
  }
}

// The experts' rows as an update, against combine and then a bf16 update: tokens without slots, with shared rows and
// gates, selected rows, rows of NaN and infinities.
TEST_F(EmbedNormTest, ExpertsRowsAsTheUpdate) {
  struct Shape {
    int64_t tokens, width, top_k;
    bool weights, shared, gate, selected;
  };
  const std::vector<Shape> shapes = {
      {1, 2048, 8, true, false, false, false}, {1, 7168, 8, true, true, true, false},
      {5, 64, 2, true, true, false, true},     {64, 2048, 8, true, true, true, false},
      {21, 40, 1, false, false, false, true},  {37, 4096, 6, true, false, false, true},
      {9, 16384, 11, true, true, true, false}, {4096, 2048, 8, true, false, false, false},
      {700, 8, 9, true, true, true, true},     {1800, 64, 9, true, true, true, false}};
  std::mt19937 random(6);
  for (const Shape& s : shapes) {
    SCOPED_TRACE(fmt::format("{} tokens of {}, top {}", s.tokens, s.width, s.top_k));
    const int64_t slots = std::min<int64_t>(s.tokens * s.top_k, 200);
    std::vector<int32_t> slot, rows;
    std::vector<float> weight, gate;
    for (int64_t i = 0; i < s.tokens * s.top_k; ++i) {
      const bool here = i / s.top_k % 7 != 2 && random() % 5 != 0;  // every seventh token has none
      slot.push_back(here ? static_cast<int32_t>(random() % static_cast<uint32_t>(slots)) : -1);
      weight.push_back(0.001f * static_cast<float>(random() % 1000));
    }
    for (int64_t t = 0; t < s.tokens; ++t) {
      gate.push_back(0.001f * static_cast<float>(random() % 1000));
      if (!s.selected || t % 3 == 1) rows.push_back(static_cast<int32_t>(t));
    }
    PoolMemory memory;
    kernels::DeviceCombine combine;
    combine.num_tokens = s.tokens;
    combine.top_k = s.top_k;
    combine.width = s.width;
    combine.rows = memory.copy_of(some_rows(slots, s.width, 7), stream());
    combine.slot = memory.copy_of(slot, stream());
    if (s.weights) combine.weight = memory.copy_of(weight, stream());
    if (s.shared) combine.shared = memory.copy_of(some_rows(s.tokens, s.width, 8), stream());
    if (s.gate) combine.shared_gate = memory.copy_of(gate, stream());
    combine.out = memory.take<uint16_t>(s.tokens * s.width, 16, stream());
    table_->combine(combine, stream());

    const auto x = some_rows(s.tokens, s.width, 1);
    kernels::DeviceAddNorm p;
    p.num_rows = static_cast<int64_t>(rows.size());
    p.width = s.width;
    p.eps = 1e-6f;
    p.rows = s.selected ? memory.copy_of(rows, stream()) : nullptr;
    p.weight = memory.copy_of(std::vector<uint16_t>(static_cast<size_t>(s.width), 0x3f90), stream());
    p.act_pitch = (s.width + 127) / 128 * 128;
    struct Found {
      std::vector<uint16_t> x, normed;
      std::vector<uint8_t> act;
      std::vector<uint32_t> scale;
    };
    const auto run = [&](bool fused) {
      p.x = memory.copy_of(x, stream());
      p.update = fused ? nullptr : combine.out;
      p.combine = fused ? combine : kernels::DeviceCombine{};
      p.combine.out = nullptr;
      p.routes_are_older = fused && s.top_k % 2 == 0;
      p.normed = memory.take<uint16_t>(p.num_rows * s.width, 16, stream());
      p.act = memory.take<uint8_t>(p.num_rows * p.act_pitch, 16, stream());
      p.act_scale = memory.take<float>(p.num_rows, 4, stream());
      table_->add_norm(p, stream());
      return Found{on_host<uint16_t>(p.x, s.tokens * s.width, stream()),
                   on_host<uint16_t>(p.normed, p.num_rows * s.width, stream()),
                   on_host<uint8_t>(p.act, p.num_rows * p.act_pitch, stream()),
                   on_host<uint32_t>(p.act_scale, p.num_rows, stream())};
    };
    const Found apart = run(false), fused = run(true);
    EXPECT_EQ(bit_differences(fused.x, apart.x, s.width), "") << "x";
    EXPECT_EQ(bit_differences(fused.normed, apart.normed, s.width), "") << "normed";
    EXPECT_EQ(bit_differences(fused.act, apart.act, p.act_pitch), "") << "codes";
    EXPECT_EQ(bit_differences(fused.scale, apart.scale, 1), "") << "scales";
    EXPECT_EQ(memory.harmed(stream()), "");
    if (HasFailure()) return;
  }
}

TEST_F(EmbedNormTest, SumNormAndCodesOfARow) {
  std::vector<NormCase> cases;
  for (const int64_t width : {8, 40, 64, 768, 2048, 2880, 7168, 16384}) {
    cases.push_back({21, width, Update::kBf16, false, true, true});
    cases.push_back({21, width, Update::kF32, true, false, true});
    cases.push_back({1, width, Update::kNone, false, true, false});
  }
  cases.push_back({3000, 64, Update::kBf16, false, true, true});
  std::mt19937 random(5);
  for (const NormCase& c : cases) {
    SCOPED_TRACE(fmt::format("{} tokens of {}", c.tokens, c.width));
    const auto x = some_rows(c.tokens, c.width, 1), update = some_rows(c.tokens, c.width, 2);
    std::vector<float> update_f32;
    for (const uint16_t code : update) update_f32.push_back(bf16_to_f32(code) * 1.003f);
    std::vector<uint16_t> weight;
    for (int64_t i = 0; i < c.width; ++i) weight.push_back(static_cast<uint16_t>(0x3f00 + random() % 0x100));
    std::vector<int32_t> rows;
    for (int64_t t = 0; t < c.tokens; ++t) {
      if (!c.selected || t % 3 == 1) rows.push_back(static_cast<int32_t>(t));
    }
    const int64_t pitch = (c.width + 127) / 128 * 128;
    Expected e;
    e.x = x;
    for (const int32_t row : rows) {
      for (int64_t i = row * c.width; i < (row + 1) * c.width; ++i) {
        const float y = c.update == Update::kF32 ? numerics::round_to_bf16(update_f32[i]) : bf16_to_f32(update[i]);
        if (c.update != Update::kNone) e.x[i] = bf16_from_f32(bf16_to_f32(x[i]) + y);
      }
      norm_row(&e.x[row * c.width], weight, pitch, &e);
    }
    PoolMemory memory;
    kernels::DeviceAddNorm p;
    p.num_rows = static_cast<int64_t>(rows.size());
    p.width = c.width;
    p.eps = 1e-6f;
    p.rows = c.selected ? memory.copy_of(rows, stream()) : nullptr;
    p.x = memory.copy_of(x, stream());
    p.update = c.update == Update::kBf16 ? memory.copy_of(update, stream()) : nullptr;
    p.update_f32 = c.update == Update::kF32 ? memory.copy_of(update_f32, stream()) : nullptr;
    p.weight = memory.copy_of(weight, stream());
    if (c.normed) p.normed = memory.take<uint16_t>(p.num_rows * c.width, 16, stream());
    if (c.codes) {
      p.act = memory.take<uint8_t>(p.num_rows * pitch, 16, stream());
      p.act_pitch = pitch;
      p.act_scale = memory.take<float>(p.num_rows, 4, stream());
    }
    table_->add_norm(p, stream());
    EXPECT_EQ(bit_differences(on_host<uint16_t>(p.x, c.tokens * c.width, stream()), e.x, c.width), "") << "x";
    if (c.normed) {
      EXPECT_EQ(bit_differences(on_host<uint16_t>(p.normed, p.num_rows * c.width, stream()), e.normed, c.width), "");
    }
    if (c.codes) {
      EXPECT_EQ(bit_differences(on_host<uint8_t>(p.act, p.num_rows * pitch, stream()), e.act, pitch), "") << "codes";
      EXPECT_EQ(bit_differences(on_host<uint32_t>(p.act_scale, p.num_rows, stream()), e.scale, 1), "") << "scales";
    }
    EXPECT_EQ(memory.harmed(stream()), "");
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace quadrille
