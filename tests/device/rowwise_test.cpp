// SPDX-License-Identifier: Apache-2.0
// Quantisation (for the routes of tokens, for listed rows) and combine against the shared functions of numerics/, bit
// for bit: NaN, infinities, -0, zero and subnormal rows, pads, absent slots, rows that nobody may touch.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <vector>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "numerics/act_quant.h"
#include "numerics/bf16.h"
#include "numerics/bits.h"
#include "numerics/elementwise.h"

namespace quadrille {
namespace {

using numerics::bf16_from_f32;
using numerics::bf16_to_f32;
using testing::kPoison;
using testing::must;
using testing::on_host;
using testing::PoolMemory;

// Rows in turn: plain, zeros, -0, one NaN, all NaN, one infinity, subnormal, huge, tiny, any bits, ascending powers.
std::vector<uint16_t> special_rows(int64_t rows, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<uint16_t> x(rows * k);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; ++i) {
      const float plain = normal(random);
      const auto any = static_cast<uint16_t>(random());
      uint16_t& v = x[r * k + i];
      v = bf16_from_f32(plain);
      switch (r % 11) {
        case 1:
          v = 0;
          break;
        case 2:
          v = 0x8000;
          break;
        case 3:
          v = i == k / 2 ? 0xffc1 : v;
          break;
        case 4:
          v = 0x7f81;
          break;
        case 5:
          v = i == k - 1 ? 0xff80 : v;
          break;
        case 6:
          v = any & 0x807f;
          break;
        case 7:
          v = (any & 0x807f) | 0x7f00;
          break;
        case 8:
          v = bf16_from_f32(plain * 0x1p-20f);
          break;
        case 9:
          v = any;
          break;
        case 10:
          v = bf16_from_f32(plain * numerics::exp2_exact(static_cast<int>(i % 40) - 30));
          break;
        default:
          break;
      }
    }
  }
  return x;
}

// What a buffer of codes and scales should hold; poison where nothing is written.
struct Codes {
  Codes(int64_t rows, int64_t pitch) : act(rows * pitch, kPoison), scale(rows, 0xffffffffu), act_pitch(pitch) {}
  void quantize(const uint16_t* x, int64_t k, int64_t row, float weight, bool weighted) {
    std::vector<float> values(k);
    float absmax = 0.0f;
    for (int64_t i = 0; i < k; ++i) {
      values[i] = bf16_to_f32(x[i]);
      if (weighted) values[i] = numerics::round_to_bf16(weight * values[i]);
      absmax = numerics::absmax_step(absmax, values[i]);
    }
    const float s = numerics::act_scale_of_absmax(absmax);
    scale[row] = numerics::bits_of(s);
    std::fill_n(act.begin() + row * act_pitch, act_pitch, uint8_t{0});
    for (int64_t i = 0; i < k; ++i) act[row * act_pitch + i] = numerics::act_code(values[i], s);
  }
  std::vector<uint8_t> act;
  std::vector<uint32_t> scale;
  int64_t act_pitch;
};

int64_t pitch_of(int64_t k) {
  return (k + 127) / 128 * 128;
}

class RowwiseTest : public testing::TableTest {
 protected:
  void expect_codes(const PoolMemory& memory, const uint8_t* act, const float* scale, const Codes& expected) {
    const auto rows = static_cast<int64_t>(expected.scale.size());
    EXPECT_EQ(testing::bit_differences(on_host<uint8_t>(act, rows * expected.act_pitch, stream()), expected.act,
                                       expected.act_pitch),
              "")
        << "codes";
    EXPECT_EQ(testing::bit_differences(on_host<uint32_t>(scale, rows, stream()), expected.scale, 1), "") << "scales";
    EXPECT_EQ(memory.harmed(stream()), "");
  }

  // slots [tokens, top_k] of `rows` rows; empty: row = token.
  void check_tokens(int64_t tokens, int64_t top_k, int64_t k, int64_t rows, const std::vector<int32_t>& slots,
                    const std::vector<float>& weights) {
    const auto x = special_rows(tokens, k, static_cast<uint32_t>(k));
    Codes expected(rows, pitch_of(k));
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < top_k; ++j) {
        const int64_t slot = slots.empty() ? t : slots[t * top_k + j];
        if (slot >= 0) expected.quantize(&x[t * k], k, slot, weights.empty() ? 1.0f : weights[t], !weights.empty());
      }
    }
    PoolMemory memory;
    kernels::QuantizeTokens p;
    p.num_tokens = tokens;
    p.top_k = top_k;
    p.k = k;
    p.act_pitch = pitch_of(k);
    p.x = memory.copy_of(x, stream());
    p.slot_of_route = slots.empty() ? nullptr : memory.copy_of(slots, stream());
    p.route_weight = weights.empty() ? nullptr : memory.copy_of(weights, stream());
    p.act = memory.take<uint8_t>(rows * p.act_pitch, 16, stream());
    p.act_scale = memory.take<float>(rows, sizeof(float), stream());
    table_->quantize_tokens(p, stream());
    expect_codes(memory, p.act, p.act_scale, expected);
  }

  // tiles empty: rows 0..num_rows-1.
  void check_listed(const std::vector<kernels::TokenTile>& tiles, int64_t max_tiles, int64_t num_rows, int64_t rows,
                    int64_t k) {
    const auto x = special_rows(rows, k, 5);
    Codes expected(rows, pitch_of(k));
    for (int64_t r = 0; r < num_rows; ++r) expected.quantize(&x[r * k], k, r, 1.0f, false);
    for (const auto& tile : tiles) {
      for (int64_t r = tile.first_row; r < tile.first_row + tile.num_rows; ++r) {
        expected.quantize(&x[r * k], k, r, 1.0f, false);
      }
    }
    auto padded = tiles;
    padded.resize(max_tiles, {-1, -1, -1, -1, -1, {-1, -1, -1}});
    PoolMemory memory;
    kernels::QuantizeListed p;
    if (max_tiles > 0) {
      p.list.tiles = memory.copy_of(padded, stream());
      p.list.num_tiles = memory.copy_of(std::vector<int32_t>{static_cast<int32_t>(tiles.size())}, stream());
      p.list.max_tiles = max_tiles;
    } else {
      p.list.num_rows = num_rows;
    }
    p.k = k;
    p.act_pitch = pitch_of(k);
    p.x = memory.copy_of(x, stream());
    p.act = memory.take<uint8_t>(rows * p.act_pitch, 16, stream());
    p.act_scale = memory.take<float>(rows, sizeof(float), stream());
    table_->quantize_listed(p, stream());
    expect_codes(memory, p.act, p.act_scale, expected);
  }
};

// A permutation of `rows` rows over the routes, a quarter of them absent, rows left over.
std::vector<int32_t> some_slots(int64_t routes, int64_t rows, uint32_t seed) {
  std::vector<int32_t> order(rows);
  std::iota(order.begin(), order.end(), 0);
  std::mt19937 random(seed);
  std::shuffle(order.begin(), order.end(), random);
  order.resize(routes);
  for (int32_t& slot : order) slot = random() % 4 == 0 ? -1 : slot;
  return order;
}

TEST_F(RowwiseTest, TokensGoToTheRowsOfTheirRoutes) {
  for (const int64_t k : {8, 64, 120, 128, 768, 1032, 2048, 2880, 7168, 14336, 40000}) {
    for (const int64_t top_k : {1, 2, 8, 40}) {
      for (const int64_t tokens : {1, 22}) {
        SCOPED_TRACE(fmt::format("{} tokens of {}, top {}", tokens, k, top_k));
        const int64_t rows = tokens * top_k + 3;
        check_tokens(tokens, top_k, k, rows, some_slots(tokens * top_k, rows, 1), {});
      }
    }
    check_tokens(23, 1, k, 25, {}, {});
    if (HasFailure()) return;
  }
  check_tokens(5, 4, 256, 9, std::vector<int32_t>(20, -1), {});
  check_tokens(0, 1, 256, 4, {}, {});
  check_tokens(3000, 2, 96, 6000, some_slots(6000, 6000, 2), {});
}

TEST_F(RowwiseTest, WeightOnTheInputIsRoundedFirst) {
  std::mt19937 random(6);
  for (const int64_t k : {64, 2048, 2880}) {
    std::vector<float> weights(44);
    for (float& w : weights) w = static_cast<float>(random() % 10000) / 9000.0f;
    weights[7] = 0.0f;
    weights[8] = numerics::float_of(numerics::kCanonicalNanF32);
    check_tokens(44, 1, k, 44, {}, weights);
    check_tokens(44, 1, k, 60, some_slots(44, 60, 3), weights);
  }
}

TEST_F(RowwiseTest, ListedRowsAndNoOthers) {
  for (const int64_t k : {8, 128, 704, 768, 1408, 2880, 14336}) {
    SCOPED_TRACE(fmt::format("k {}", k));
    check_listed({}, 0, 45, 50, k);
    check_listed({{0, 0, 16, 0, 2, {}}, {0, 16, 1, 0, 2, {}}, {2, 17, 7, 2, 1, {}}}, 9, 0, 30, k);
    // Masked layout: gaps between experts.
    check_listed({{0, 0, 3, 0, 1, {}}, {1, 20, 20, 1, 1, {}}, {3, 61, 18, 2, 1, {}}}, 4, 0, 80, k);
    check_listed({}, 4, 0, 10, k);  // an empty list
    if (HasFailure()) return;
  }
  check_listed({}, 0, 0, 3, 128);
  std::vector<kernels::TokenTile> many;
  for (int32_t i = 0; i < 5000; ++i) many.push_back({i, i, 1, i, 1, {}});
  check_listed(many, 6000, 0, 5003, 16);
}

struct CombineCase {
  int64_t tokens, top_k, width;
  bool weights, shared, gate;
};

TEST_F(RowwiseTest, CombineIsOneChainInSlotOrder) {
  std::vector<CombineCase> cases;
  for (const int64_t width : {8, 128, 640, 2048, 2112, 2880, 7168}) {
    for (const int64_t top_k : {1, 2, 6, 8, 9, 17}) {
      for (const int64_t tokens : {1, 30}) {
        const bool odd = (top_k + width / 8) % 2 == 1;
        cases.push_back({tokens, top_k, width, true, odd, tokens == 30});
        cases.push_back({tokens, top_k, width, top_k != 1, !odd, tokens == 1});
      }
    }
  }
  cases.push_back({3000, 4, 64, true, true, true});
  cases.push_back({0, 4, 64, true, false, false});
  std::mt19937 random(8);
  for (const CombineCase& c : cases) {
    SCOPED_TRACE(fmt::format("{} tokens, top {}, width {}", c.tokens, c.top_k, c.width));
    const int64_t slots = c.tokens * c.top_k + 2;
    const auto rows = special_rows(slots, c.width, 11), shared = special_rows(c.tokens, c.width, 12);
    auto slot = some_slots(c.tokens * c.top_k, slots, 13);
    if (c.tokens > 1) std::fill_n(slot.begin() + c.top_k, c.top_k, -1);  // a token without any expert here
    std::vector<float> weight(slot.size()), gate(c.tokens);
    for (float& w : weight) w = static_cast<float>(random() % 10000) / 10000.0f;
    for (float& g : gate) g = static_cast<float>(random() % 10000) / 10000.0f;
    std::vector<uint16_t> expected(c.tokens * c.width);
    for (int64_t i = 0; i < c.tokens * c.width; ++i) {
      const int64_t t = i / c.width;
      float acc = 0.0f;
      for (int64_t j = t * c.top_k; j < (t + 1) * c.top_k; ++j) {
        if (slot[j] < 0) continue;
        acc = numerics::combine_step(c.weights ? weight[j] : 1.0f, bf16_to_f32(rows[slot[j] * c.width + i % c.width]),
                                     acc);
      }
      if (c.shared) acc = numerics::combine_step(c.gate ? gate[t] : 1.0f, bf16_to_f32(shared[i]), acc);
      expected[i] = bf16_from_f32(acc);
    }
    PoolMemory memory;
    kernels::DeviceCombine p;
    p.num_tokens = c.tokens;
    p.top_k = c.top_k;
    p.width = c.width;
    p.rows = memory.copy_of(rows, stream());
    p.slot = memory.copy_of(slot, stream());
    p.weight = c.weights ? memory.copy_of(weight, stream()) : nullptr;
    p.shared = c.shared ? memory.copy_of(shared, stream()) : nullptr;
    p.shared_gate = c.gate ? memory.copy_of(gate, stream()) : nullptr;
    p.out = memory.take<uint16_t>(c.tokens * c.width, 16, stream());
    table_->combine(p, stream());
    EXPECT_EQ(testing::bit_differences(on_host<uint16_t>(p.out, c.tokens * c.width, stream()), expected, c.width), "");
    EXPECT_EQ(memory.harmed(stream()), "");
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace quadrille
