// SPDX-License-Identifier: Apache-2.0
// Heads of the fused projection against the shared functions of numerics/, bit for bit: q, and every byte of the pages,
// those that no token writes included.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <random>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "numerics/elementwise.h"
#include "numerics/lane_sum.h"

namespace quadrille {
namespace {

using kernels::HeadNorm;
using numerics::bf16_from_f32;
using numerics::bf16_to_f32;
using testing::bit_differences;
using testing::must;
using testing::on_host;
using testing::PoolMemory;

struct QkvCase {
  int64_t heads, kv_heads, head_dim, rotary_dim;
  HeadNorm norm;
  float clip;
  bool over_ranks;  // the mean is taken over more columns than the rank has
  int64_t repeats = 1;
};

constexpr int64_t kTokens = 90;  // of a round; further rounds write the same keys and values again
constexpr int64_t kPages = 9;
constexpr int64_t kStride = 3;

// One step's inputs on the host.
struct Step {
  std::vector<uint16_t> qkv, q_norm, k_norm, whole_q, whole_k;
  std::vector<float> cos, sin;
  std::vector<int32_t> position, sequence, table;
  int64_t pitch = 0;
  int64_t tokens = 0;
};

std::vector<uint16_t> numbers(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, 1.5f);
  std::vector<uint16_t> x;
  for (int64_t i = 0; i < count; ++i) x.push_back(bf16_from_f32(normal(random)));
  return x;
}

Step make_step(const QkvCase& c) {
  std::mt19937 random(static_cast<uint32_t>(c.head_dim * 100 + c.heads));
  Step s;
  s.pitch = (c.heads + 2 * c.kv_heads) * c.head_dim + 8;
  s.qkv = numbers(kTokens * s.pitch, random);
  s.qkv[17] = 0xffc1;
  s.qkv[static_cast<size_t>(3 * s.pitch + 2)] = 0x7f80;
  const bool whole = c.norm == HeadNorm::kWholeProjection;
  s.q_norm = numbers(whole ? c.heads * c.head_dim : c.head_dim, random);
  s.k_norm = numbers(whole ? c.kv_heads * c.head_dim : c.head_dim, random);
  s.whole_q = numbers(kTokens * 3 * c.heads * c.head_dim, random);
  s.whole_k = numbers(kTokens * 2 * c.kv_heads * c.head_dim, random);
  for (int64_t i = 0; i < kStride * 64 * c.rotary_dim / 2; ++i) {
    s.cos.push_back(std::cos(static_cast<float>(i) * 0.37f));
    s.sin.push_back(std::sin(static_cast<float>(i) * 0.37f));
  }
  s.table = {4, 1, 8, 0, 7, 2};
  for (int64_t t = 0; t < kTokens; ++t) {
    // Sequence 0 from position 50 over two borders of pages, a padding token, sequence 1 at 5.
    s.sequence.push_back(t < 80 ? 0 : 1);
    s.position.push_back(t == 80 ? -1 : static_cast<int32_t>(t < 80 ? 50 + t : t - 76));
  }
  s.tokens = c.repeats * kTokens;
  const auto repeat = [&](auto& rows) {
    const auto size = static_cast<std::ptrdiff_t>(rows.size());
    for (int64_t i = 1; i < c.repeats; ++i) {
      const auto copy = rows;
      rows.insert(rows.end(), copy.begin(), copy.begin() + size);
    }
  };
  repeat(s.qkv);
  repeat(s.sequence);
  repeat(s.position);
  return s;
}

float scale_of(const uint16_t* x, int64_t width) {
  std::vector<float> row;
  for (int64_t i = 0; i < width; ++i) row.push_back(bf16_to_f32(x[i]));
  return numerics::rms_scale(numerics::lane_sum_squares(row.data(), width), width, 1e-5f);
}

// One head after norm, clip and rotation. norm: its weights or null; whole: row of the mean or null.
std::vector<uint16_t> head_of(const QkvCase& c, const Step& s, int64_t t, const uint16_t* x, const uint16_t* norm,
                              float scale, bool rotates) {
  std::vector<float> y;
  for (int64_t i = 0; i < c.head_dim; ++i) {
    float v = bf16_to_f32(x[i]);
    if (norm != nullptr) v = numerics::rms_norm_value(v, scale, bf16_to_f32(norm[i]), true);
    if (c.clip > 0) v = v > c.clip ? c.clip : v < -c.clip ? -c.clip : v;
    y.push_back(v);
  }
  const int64_t half = rotates ? c.rotary_dim / 2 : 0;
  for (int64_t i = 0; i < half; ++i) {
    const auto angle = static_cast<size_t>(s.position[static_cast<size_t>(t)] * half + i);
    const float a = y[static_cast<size_t>(i)], b = y[static_cast<size_t>(i + half)];
    y[static_cast<size_t>(i)] = numerics::rope_first(a, b, s.cos[angle], s.sin[angle], true);
    y[static_cast<size_t>(i + half)] = numerics::rope_second(a, b, s.cos[angle], s.sin[angle], true);
  }
  std::vector<uint16_t> codes;
  for (const float v : y) codes.push_back(bf16_from_f32(v));
  return codes;
}

struct Expected {
  std::vector<uint16_t> q, pages;
};
Expected expected_of(const QkvCase& c, const Step& s) {
  const layout::KvTile map{c.kv_heads, c.head_dim};
  Expected e{std::vector<uint16_t>(s.tokens * c.heads * c.head_dim, 0xffff),
             std::vector<uint16_t>(kPages * map.page_size(), 0xffff)};
  for (int64_t t = 0; t < s.tokens; ++t) {
    const int64_t position = s.position[t];
    if (position < 0) continue;
    const uint16_t* x = &s.qkv[t * s.pitch];
    uint16_t* page = &e.pages[s.table[s.sequence[t] * kStride + position / 64] * map.page_size()];
    for (int64_t h = 0; h < c.heads + 2 * c.kv_heads; ++h) {
      const bool is_query = h < c.heads, is_key = !is_query && h < c.heads + c.kv_heads;
      const int64_t index = is_query ? h : is_key ? h - c.heads : h - c.heads - c.kv_heads;
      const uint16_t* norm = nullptr;
      float scale = 0;
      if (c.norm == HeadNorm::kPerHead && (is_query || is_key)) {
        norm = is_query ? s.q_norm.data() : s.k_norm.data();
        scale = scale_of(x + h * c.head_dim, c.head_dim);
      } else if (c.norm == HeadNorm::kWholeProjection && (is_query || is_key)) {
        norm = (is_query ? s.q_norm.data() : s.k_norm.data()) + index * c.head_dim;
        const int64_t own = (is_query ? c.heads : c.kv_heads) * c.head_dim;
        const int64_t width = own * (c.over_ranks ? (is_query ? 3 : 2) : 1);
        const uint16_t* row = is_query ? x : x + c.heads * c.head_dim;
        if (c.over_ranks) row = (is_query ? s.whole_q.data() : s.whole_k.data()) + t * width;
        scale = scale_of(row, width);
      }
      const auto codes = head_of(c, s, t, x + h * c.head_dim, norm, scale, is_query || is_key);
      for (int64_t i = 0; i < map.padded_dim(); ++i) {
        const uint16_t code = i < c.head_dim ? codes[i] : uint16_t{0};
        if (is_query && i < c.head_dim) e.q[(t * c.heads + index) * c.head_dim + i] = code;
        if (is_key) page[map.key_offset(index, position % 64, i)] = code;
        if (!is_query && !is_key) page[map.value_offset(index, position % 64, i)] = code;
      }
    }
  }
  return e;
}

class QkvTest : public testing::TableTest {};

TEST_F(QkvTest, HeadsGoWhereTheyBelong) {
  const QkvCase cases[] = {
      {32, 4, 128, 128, HeadNorm::kPerHead, 0, false},
      {16, 16, 128, 128, HeadNorm::kWholeProjection, 0, false},
      {4, 4, 128, 128, HeadNorm::kWholeProjection, 1, true},
      {6, 2, 64, 64, HeadNorm::kNone, 0.75f, false},
      {3, 1, 80, 80, HeadNorm::kNone, 0, false},
      {5, 2, 16, 16, HeadNorm::kPerHead, 0, false},
      {2, 2, 256, 64, HeadNorm::kPerHead, 2, false},
      {1, 1, 96, 0, HeadNorm::kNone, 0, false},
      {7, 3, 160, 160, HeadNorm::kNone, 0, false},
      {3, 2, 24, 24, HeadNorm::kPerHead, 0, false},       // halves that are no vectors
      {5, 1, 200, 140, HeadNorm::kPerHead, 1.5f, false},  // the same, wide
      {9, 3, 40, 16, HeadNorm::kWholeProjection, 0, false},
      {32, 4, 128, 128, HeadNorm::kPerHead, 0, false, 6},  // tokens enough for a block each
      {6, 2, 64, 64, HeadNorm::kNone, 0.75f, false, 6},
      {16, 16, 128, 128, HeadNorm::kWholeProjection, 0, false, 6},
      {3, 2, 256, 256, HeadNorm::kPerHead, 0, false, 6},
  };
  for (const QkvCase& c : cases) {
    SCOPED_TRACE(fmt::format("{} and {} heads of {}", c.heads, c.kv_heads, c.head_dim));
    const Step s = make_step(c);
    const Expected expected = expected_of(c, s);
    PoolMemory memory;
    kernels::DeviceQkv p;
    p.num_tokens = s.tokens;
    p.num_heads = c.heads;
    p.pages.data = memory.take<uint16_t>(static_cast<int64_t>(expected.pages.size()), 128, stream());
    must(device::fill(p.pages.data, 0xff, expected.pages.size() * 2, stream()));
    p.pages.table = memory.copy_of(s.table, stream());
    p.pages.table_stride = kStride;
    p.pages.num_kv_heads = c.kv_heads;
    p.pages.head_dim = c.head_dim;
    p.qkv = memory.copy_of(s.qkv, stream());
    p.qkv_pitch = s.pitch;
    p.norm = c.norm;
    p.eps = 1e-5f;
    if (c.norm != HeadNorm::kNone) {
      p.q_norm = memory.copy_of(s.q_norm, stream());
      p.k_norm = memory.copy_of(s.k_norm, stream());
    }
    if (c.over_ranks) {
      p.whole_q = memory.copy_of(s.whole_q, stream());
      p.whole_k = memory.copy_of(s.whole_k, stream());
      p.whole_q_width = 3 * c.heads * c.head_dim;
      p.whole_k_width = 2 * c.kv_heads * c.head_dim;
    }
    p.clip = c.clip;
    p.rotary_dim = c.rotary_dim;
    p.cos = memory.copy_of(s.cos, stream());
    p.sin = memory.copy_of(s.sin, stream());
    p.position = memory.copy_of(s.position, stream());
    p.sequence = memory.copy_of(s.sequence, stream());
    p.q = memory.take<uint16_t>(static_cast<int64_t>(expected.q.size()), 16, stream());
    must(device::fill(p.q, 0xff, expected.q.size() * 2, stream()));
    table_->split_heads(p, stream());
    EXPECT_EQ(bit_differences(on_host<uint16_t>(p.q, static_cast<int64_t>(expected.q.size()), stream()), expected.q,
                              c.heads * c.head_dim),
              "")
        << "q";
    EXPECT_EQ(bit_differences(on_host<uint16_t>(p.pages.data, static_cast<int64_t>(expected.pages.size()), stream()),
                              expected.pages, layout::KvTile{c.kv_heads, c.head_dim}.page_size()),
              "")
        << "pages";
    EXPECT_EQ(memory.harmed(stream()), "");
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace quadrille
