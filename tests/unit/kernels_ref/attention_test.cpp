// SPDX-License-Identifier: Apache-2.0
// Paged attention: every table but `ref` to the bit of the definition in docs/numerics.md, `ref` within a derived
// bound; windows, grouped heads, scattered pages, and keys that must not be seen.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <list>
#include <random>
#include <string>

#include "kernels/ref/tables.h"
#include "layout/kv_page.h"
#include "numerics/elementwise.h"
#include "numerics/exp.h"
#include "numerics/lane_sum.h"
#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::KvType;
using kernels::Rounding;
using numerics::bits_of;

struct AttentionSample {
  int64_t heads, kv_heads, dim, window;
  KvType type;
  std::vector<int64_t> lengths;  // of each sequence
  std::vector<int32_t> position, sequence, pages;
  int64_t page_stride = 0;
  std::vector<float> q;
  std::vector<float> keys, values;               // by page, fp32
  std::vector<uint16_t> keys_bf16, values_bf16;  // the same numbers
  ThreadPool pool{2};
  Arena scratch;

  // Every sequence is queried at its last few positions and at one early one.
  AttentionSample(int64_t h, int64_t kv, int64_t d, int64_t w, KvType kv_type, std::vector<int64_t> sizes,
                  unsigned seed)
      : heads(h), kv_heads(kv), dim(d), window(w), type(kv_type), lengths(std::move(sizes)) {
    std::mt19937 random(seed);
    for (int64_t length : lengths) page_stride = std::max(page_stride, (length + 63) / 64);
    std::vector<int32_t> shuffled(lengths.size() * static_cast<size_t>(page_stride) + 2);
    for (size_t i = 0; i < shuffled.size(); ++i) shuffled[i] = static_cast<int32_t>(i);
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    pages.assign(shuffled.begin(), shuffled.begin() + static_cast<int64_t>(lengths.size()) * page_stride);
    const layout::KvPage page{kv_heads, dim};
    // What no sequence wrote is NaN: a table that multiplies an unseen key or value shows it.
    keys.assign(shuffled.size() * static_cast<size_t>(page.size()), std::nanf(""));
    values = keys;
    std::normal_distribution<float> normal;
    for (size_t s = 0; s < lengths.size(); ++s) {
      for (int64_t p = 0; p < lengths[s]; ++p) {
        for (int64_t head = 0; head < kv_heads; ++head) {
          for (int64_t i = 0; i < dim; ++i) {
            keys[place(s, p) + static_cast<size_t>(page.key_offset(head, p % 64, i))] = rounded(normal(random));
            values[place(s, p) + static_cast<size_t>(page.value_offset(head, p % 64, i))] = rounded(normal(random));
          }
        }
      }
      for (int64_t p : {lengths[s] / 3, lengths[s] - 2, lengths[s] - 1}) {
        if (p < 0) continue;
        position.push_back(static_cast<int32_t>(p));
        sequence.push_back(static_cast<int32_t>(s));
      }
    }
    for (size_t i = 0; i < position.size() * static_cast<size_t>(stride()); ++i) q.push_back(rounded(normal(random)));
    for (float key : keys) keys_bf16.push_back(numerics::bf16_from_f32(key));
    for (float value : values) values_bf16.push_back(numerics::bf16_from_f32(value));
  }

  float rounded(float x) const { return type == KvType::kBf16 ? numerics::round_to_bf16(x) : x; }
  int64_t stride() const { return heads * dim + 5; }
  size_t place(size_t s, int64_t p) const {
    const layout::KvPage page{kv_heads, dim};
    return static_cast<size_t>(pages[s * static_cast<size_t>(page_stride) + static_cast<size_t>(p / 64)] * page.size());
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
  int64_t first_key(size_t t) const { return window > 0 ? std::max<int64_t>(0, position[t] - window + 1) : 0; }
  float key(size_t t, int64_t head, int64_t p, int64_t d) const {
    const layout::KvPage page{kv_heads, dim};
    return keys[place(static_cast<size_t>(sequence[t]), p) +
                static_cast<size_t>(page.key_offset(head / (heads / kv_heads), p % 64, d))];
  }
  float value(size_t t, int64_t head, int64_t p, int64_t d) const {
    const layout::KvPage page{kv_heads, dim};
    return values[place(static_cast<size_t>(sequence[t]), p) +
                  static_cast<size_t>(page.value_offset(head / (heads / kv_heads), p % 64, d))];
  }
  float query(size_t t, int64_t head, int64_t d) const {
    return q[t * static_cast<size_t>(stride()) + static_cast<size_t>(head * dim + d)];
  }

  std::vector<float> run(const kernels::KernelTable& table, Rounding rounding, size_t first, size_t count) {
    std::vector<float> out(count * static_cast<size_t>(heads * dim));
    kernels::Attention p;
    p.rounding = rounding;
    p.kv_type = type;
    p.num_tokens = static_cast<int64_t>(count);
    p.num_heads = heads;
    p.num_kv_heads = kv_heads;
    p.head_dim = dim;
    p.window = window;
    p.scale = scale();
    p.q_stride = stride();
    p.q = q.data() + first * static_cast<size_t>(stride());
    p.position = position.data() + first;
    p.sequence = sequence.data() + first;
    p.page_table = pages.data();
    p.page_table_stride = page_stride;
    p.keys = type == KvType::kBf16 ? static_cast<const void*>(keys_bf16.data()) : keys.data();
    p.values = type == KvType::kBf16 ? static_cast<const void*>(values_bf16.data()) : values.data();
    p.out = out.data();
    table.attention(p, {&pool, &scratch});
    return out;
  }
  std::vector<float> run(const kernels::KernelTable& table, Rounding rounding) {
    return run(table, rounding, 0, position.size());
  }
};

// The definition, one query head at a time.
std::vector<float> defined(const AttentionSample& s, size_t t, int64_t head, Rounding rounding) {
  const int64_t first = s.first_key(t), last = s.position[t];
  float m = -INFINITY, l = 0.0f;
  std::vector<float> o(static_cast<size_t>(s.dim), 0.0f);
  for (int64_t block = first / 64; block <= last / 64; ++block) {
    const int64_t begin = std::max(first, block * 64), end = std::min(last + 1, block * 64 + 64);
    float score[64], p[64] = {};
    float mb = m;
    for (int64_t j = begin; j < end; ++j) {
      float dot = 0.0f;
      for (int64_t d = 0; d < s.dim; ++d) dot = std::fmaf(s.query(t, head, d), s.key(t, head, j, d), dot);
      score[j % 64] = s.scale() * dot;
      mb = std::max(mb, score[j % 64]);
    }
    const float c = std::isinf(m) ? 0.0f : numerics::exp_f32(m - mb);
    for (int64_t j = begin; j < end; ++j) p[j % 64] = numerics::exp_f32(score[j % 64] - mb);
    l = std::fmaf(l, c, numerics::lane_sum(p, 64));
    for (int64_t d = 0; d < s.dim; ++d) {
      float& sum = o[static_cast<size_t>(d)];
      sum = sum * c;
      for (int64_t j = begin; j < end; ++j) sum = std::fmaf(p[j % 64], s.value(t, head, j, d), sum);
    }
    m = mb;
  }
  for (float& x : o) x = numerics::round_output(x / l, rounding == Rounding::kBf16);
  return o;
}

std::list<AttentionSample> samples() {
  std::list<AttentionSample> out;
  out.emplace_back(4, 2, 32, 0, KvType::kBf16, std::vector<int64_t>{1, 65, 200}, 1);
  out.emplace_back(6, 1, 24, 0, KvType::kF32, std::vector<int64_t>{64, 130}, 2);
  out.emplace_back(3, 3, 80, 50, KvType::kBf16, std::vector<int64_t>{40, 300}, 3);
  out.emplace_back(8, 2, 64, 64, KvType::kF32, std::vector<int64_t>{129, 2}, 4);
  out.emplace_back(5, 1, 17, 1, KvType::kF32, std::vector<int64_t>{70}, 5);
  return out;
}

TEST(Attention, EveryTableButRefFollowsTheDefinition) {
  auto all = samples();
  for (auto& s : all) {
    for (const Rounding rounding : {Rounding::kF32, Rounding::kBf16}) {
      for (const kernels::KernelTable* table : testing::runnable_tables()) {
        if (std::string(table->name) == "ref") continue;
        const auto out = s.run(*table, rounding);
        for (size_t t = 0; t < s.position.size(); ++t) {
          for (int64_t head = 0; head < s.heads; ++head) {
            const auto expected = defined(s, t, head, rounding);
            for (int64_t d = 0; d < s.dim; ++d) {
              const size_t i =
                  (t * static_cast<size_t>(s.heads) + static_cast<size_t>(head)) * static_cast<size_t>(s.dim);
              ASSERT_EQ(bits_of(out[i + static_cast<size_t>(d)]), bits_of(expected[static_cast<size_t>(d)]))
                  << table->name << " token " << t << " head " << head << " d " << d << " dim " << s.dim;
            }
          }
        }
      }
    }
  }
}

// |out - truth| <= sum_j w_j |v_j| * (e^eps - 1): a score is off by at most gamma(dim + 1) * scale * sum |q k|, exp and
// its argument by 2^-22 and (largest score difference) * 2^-24, each block rescales once, each sum rounds once a key.
TEST(Attention, RefWithinTheBound) {
  auto all = samples();
  for (auto& s : all) {
    const auto truth = s.run(kernels::ref::kRefTable, Rounding::kF32);
    const auto out = s.run(kernels::ref::kHopperTable, Rounding::kF32);
    for (size_t t = 0; t < s.position.size(); ++t) {
      const int64_t first = s.first_key(t), last = s.position[t];
      for (int64_t head = 0; head < s.heads; ++head) {
        double score_error = 0, largest = 0;
        for (int64_t j = first; j <= last; ++j) {
          double sum = 0;
          for (int64_t d = 0; d < s.dim; ++d) sum += std::fabs(double{s.query(t, head, d)} * s.key(t, head, j, d));
          score_error = std::max(score_error, double(s.dim + 2) * 0x1p-24 * s.scale() * sum);
          largest = std::max(largest, s.scale() * sum);
        }
        const double blocks = static_cast<double>(last / 64 - first / 64 + 1);
        const double keys = static_cast<double>(last - first + 1);
        const double eps = 2 * (2 * score_error + (blocks + 1) * (0x1p-22 + 4 * largest * 0x1p-24) +
                                (keys + 2 * blocks + 10) * 0x1p-24);
        for (int64_t d = 0; d < s.dim; ++d) {
          double reach = 0;  // the weights sum to one: the largest |v| bounds their mean
          for (int64_t j = first; j <= last; ++j) reach = std::max(reach, double{std::fabs(s.value(t, head, j, d))});
          const size_t i = (t * static_cast<size_t>(s.heads) + static_cast<size_t>(head)) * static_cast<size_t>(s.dim) +
                           static_cast<size_t>(d);
          ASSERT_LE(std::fabs(double{out[i]} - double{truth[i]}), reach * std::expm1(eps));
          ASSERT_LT(std::expm1(eps), 1e-3);  // the bound says something
        }
      }
    }
  }
}

TEST(Attention, AQueryDoesNotKnowItsBatch) {
  auto all = samples();
  for (auto& s : all) {
    for (const kernels::KernelTable* table : testing::runnable_tables()) {
      const auto together = s.run(*table, Rounding::kBf16);
      const size_t row = static_cast<size_t>(s.heads * s.dim);
      for (size_t t = 0; t < s.position.size(); ++t) {
        const auto alone = s.run(*table, Rounding::kBf16, t, 1);
        for (size_t i = 0; i < row; ++i) ASSERT_EQ(bits_of(alone[i]), bits_of(together[t * row + i])) << table->name;
      }
    }
  }
}

}  // namespace
}  // namespace quadrille
