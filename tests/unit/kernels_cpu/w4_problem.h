// SPDX-License-Identifier: Apache-2.0
// A random W4A8 problem in the CPU layout, and an independent scalar statement of its result in the CPU order or that
// of `vdpbf16` (docs/numerics.md section 3): plain loops over canonical weights, std::fma, no code of the tables.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "cpu_tables.h"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/int4.h"

namespace quadrille::kernels::test {

struct W4Case {
  Numerics numerics = Numerics::kExact;
  int64_t n = 0, k = 0, group_size = 0;
  std::vector<int64_t> rows_of_expert;
  bool gather = false;
  bool bias = false;
  bool block = false;  // 1 x 128 activation scales
  bool pairs = false;  // expected() in the order of `vdpbf16`
};

class W4Problem {
 public:
  W4Problem(const W4Case& setup, uint32_t seed) : setup_(setup), random_(seed) {
    offsets_.push_back(0);
    for (int64_t rows : setup.rows_of_expert) offsets_.push_back(offsets_.back() + rows);
    input_rows_ = setup.gather ? slots() / 2 + 3 : slots();
    if (setup.gather) {
      for (int64_t s = 0; s < slots(); ++s) source_.push_back(static_cast<int32_t>(random_.below(input_rows_)));
    }
    for (int64_t i = 0; i < input_rows_ * setup.k; ++i) {
      // Codes of a normal row after scaling; every code but NaN turns up.
      act_.push_back(random_.below(16) == 0 ? any_number_code() : numerics::e4m3_from_f32(random_.normal() * 100));
    }
    for (int64_t r = 0; r < input_rows_; ++r) act_scale_.push_back(std::fabs(random_.normal()) * 0.01f);
    for (int64_t i = 0; i < input_rows_ * num_blocks(); ++i) {
      block_scale_.push_back(std::fabs(random_.normal()) * 0.01f);
    }
    for (int64_t e = 0; e < num_experts(); ++e) add_expert();
    for (int64_t e = 0; e < num_experts(); ++e) {
      const Expert& x = experts_[static_cast<size_t>(e)];
      matrices_.push_back({x.codes.data(), x.scale.data(), x.scale8.data(), x.channel.data()});
      bias_pointers_.push_back(x.bias.data());
    }
  }

  int64_t slots() const { return offsets_.back(); }
  int64_t num_experts() const { return static_cast<int64_t>(setup_.rows_of_expert.size()); }
  std::vector<uint8_t>& act() { return act_; }
  std::vector<float>& act_scale() { return act_scale_; }
  std::vector<float>& block_scale() { return block_scale_; }
  int64_t num_blocks() const { return (setup_.k + 127) / 128; }
  int64_t groups() const { return layout::num_groups(setup_.k, setup_.group_size); }

  void set_scale(int64_t expert, int64_t row, int64_t group, uint16_t bf16, uint8_t e4m3) {
    const int64_t at = layout::ScaleLanes16{setup_.n, groups()}.offset(row, group);
    experts_[static_cast<size_t>(expert)].scale[static_cast<size_t>(at)] = bf16;
    experts_[static_cast<size_t>(expert)].scale8[static_cast<size_t>(at)] = e4m3;
  }

  // Rows 0 to 5 of the input and output rows 7 to 9 of expert 0 (k 128, two groups): zeros, NaN, infinity, subnormals.
  void set_special_values() {
    for (int64_t i = 0; i < 128; ++i) act()[static_cast<size_t>(i)] = 0;  // row 0: zero
    act()[128 + 77] = 0x7f;                                               // row 1: NaN
    act()[2 * 128] = 0xff;                                                // row 2: NaN
    act_scale()[3] = std::numeric_limits<float>::infinity();
    act_scale()[4] = std::numeric_limits<float>::quiet_NaN();
    for (int64_t i = 0; i < 128; ++i) act()[static_cast<size_t>(5 * 128 + i)] = 0x80;  // row 5: -0
    set_scale(0, 7, 1, 0x7fc1, 0xff);                                                  // NaN scale
    set_scale(0, 8, 0, 0xff80, 0x7e);                                                  // -Inf, largest
    set_scale(0, 9, 0, 0x0001, 0x01);                                                  // subnormal
  }

  // Every weight of every expert.
  void set_weights(int q) {
    for (Expert& x : experts_) {
      std::fill(x.q.begin(), x.q.end(), static_cast<int8_t>(q));
      const layout::W4Lanes16 map{setup_.n, setup_.k};
      std::fill(x.codes.begin(), x.codes.end(), 0u);
      for (int64_t row = 0; row < setup_.n; ++row) {
        for (int64_t k = 0; k < setup_.k; ++k) {
          x.codes[static_cast<size_t>(map.word_index(row, k))] |= numerics::int4_of_q(q) << (4 * (k % 8));
        }
      }
    }
  }

  W4A8Gemm problem(float* out) const {
    W4A8Gemm gemm;
    gemm.numerics = setup_.numerics;
    gemm.n = setup_.n;
    gemm.k = setup_.k;
    gemm.group_size = setup_.group_size;
    gemm.rows = {num_experts(), offsets_.data(), setup_.gather ? source_.data() : nullptr};
    gemm.weights = matrices_.data();
    gemm.act = act_.data();
    if (setup_.block) gemm.block_scale = row_block_scales(block_scale_.data(), num_blocks());
    gemm.act_scale = setup_.block ? nullptr : act_scale_.data();
    gemm.bias = setup_.bias ? bias_pointers_.data() : nullptr;
    gemm.out = out;
    return gemm;
  }

  Buffer<float> run(const KernelTable& table, const KernelContext& context) const {
    Buffer<float> out = poisoned(slots() * setup_.n);
    table.w4a8_gemm(problem(out.data()), context);
    return out;
  }

  Buffer<float> expected() const {
    Buffer<float> out(static_cast<size_t>(slots() * setup_.n));
    for (int64_t e = 0; e < num_experts(); ++e) {
      for (int64_t s = offsets_[static_cast<size_t>(e)]; s < offsets_[static_cast<size_t>(e) + 1]; ++s) {
        for (int64_t row = 0; row < setup_.n; ++row) {
          out[static_cast<size_t>(s * setup_.n + row)] = expected_value(e, s, row);
        }
      }
    }
    return out;
  }

 private:
  struct Expert {
    std::vector<int8_t> q;  // [n, k]
    std::vector<uint32_t> codes;
    std::vector<uint16_t> scale;
    std::vector<uint8_t> scale8;
    std::vector<float> channel;
    std::vector<float> bias;
  };

  uint8_t any_number_code() {
    const int64_t code = random_.below(254);
    return static_cast<uint8_t>(code < 127 ? code : code + 1);
  }

  void add_expert() {
    const layout::W4Lanes16 map{setup_.n, setup_.k};
    const layout::ScaleLanes16 scales{setup_.n, groups()};
    const int64_t np = map.blocks() * 16;
    Expert x;
    x.q.resize(static_cast<size_t>(setup_.n * setup_.k));
    x.codes.resize(static_cast<size_t>(map.num_words()));
    x.scale.resize(static_cast<size_t>(scales.size()));
    x.scale8.resize(static_cast<size_t>(scales.size()));
    x.channel.resize(static_cast<size_t>(np));
    for (int64_t row = 0; row < setup_.n; ++row) {
      for (int64_t k = 0; k < setup_.k; ++k) {
        const int q = static_cast<int>(random_.below(16)) - 8;
        x.q[static_cast<size_t>(row * setup_.k + k)] = static_cast<int8_t>(q);
        x.codes[static_cast<size_t>(map.word_index(row, k))] |= numerics::int4_of_q(q) << (4 * (k % 8));
      }
      for (int64_t g = 0; g < groups(); ++g) {
        const auto at = static_cast<size_t>(scales.offset(row, g));
        x.scale[at] = numerics::bf16_from_f32(random_.normal() * 0.02f);
        x.scale8[at] = any_number_code();
      }
      x.channel[static_cast<size_t>(row)] = random_.normal();
    }
    x.bias = random_.normals(setup_.n);
    experts_.push_back(std::move(x));
  }

  float weight(const Expert& x, int64_t row, int64_t k) const {
    const float q = x.q[static_cast<size_t>(row * setup_.k + k)];
    if (setup_.numerics == Numerics::kExact) return q;
    const int64_t group = setup_.group_size == 0 ? 0 : k / setup_.group_size;
    const auto at = static_cast<size_t>(layout::ScaleLanes16{setup_.n, groups()}.offset(row, group));
    return numerics::e4m3_to_f32(numerics::e4m3_from_f32(numerics::e4m3_to_f32(x.scale8[at]) * q));
  }

  // The chain of `vdpbf16` over the same positions: in each 8 the pairs (j, j + 4), the later position first.
  float pairs_step(const Expert& x, int64_t row, const uint8_t* act, int64_t k0, float acc) const {
    for (const int i : {4, 0, 5, 1, 6, 2, 7, 3}) {
      acc = std::fma(numerics::e4m3_to_f32(act[k0 + i]), weight(x, row, k0 + i), acc);
    }
    return acc;
  }

  // acc + (e + o) over the step that begins at k0; positions behind k are zero products.
  float step(const Expert& x, int64_t row, const uint8_t* act, int64_t k0, float acc) const {
    if (setup_.pairs) {
      for (int64_t k = k0; k < k0 + 32 && k < setup_.k; k += 8) acc = pairs_step(x, row, act, k, acc);
      return acc;
    }
    float chain[2] = {0.0f, 0.0f};
    for (int64_t i = 0; i < 32 && k0 + i < setup_.k; ++i) {
      chain[i % 2] = std::fma(numerics::e4m3_to_f32(act[k0 + i]), weight(x, row, k0 + i), chain[i % 2]);
    }
    return acc + (chain[0] + chain[1]);
  }

  float expected_value(int64_t e, int64_t slot, int64_t row) const {
    const Expert& x = experts_[static_cast<size_t>(e)];
    const int64_t input = setup_.gather ? source_[static_cast<size_t>(slot)] : slot;
    const uint8_t* act = act_.data() + input * setup_.k;
    const float sa = act_scale_[static_cast<size_t>(input)];
    const int64_t piece = setup_.group_size == 0 ? 128 : setup_.group_size;
    float acc = 0.0f, total = 0.0f;
    for (int64_t k0 = 0; k0 < setup_.k; k0 += 32) {
      acc = step(x, row, act, k0, acc);
      if (setup_.numerics == Numerics::kVllm || ((k0 + 32) % piece != 0 && k0 + 32 < setup_.k)) continue;
      const int64_t group = setup_.group_size == 0 ? 0 : k0 / setup_.group_size;
      const auto at = static_cast<size_t>(layout::ScaleLanes16{setup_.n, groups()}.offset(row, group));
      if (setup_.block) {
        const volatile float scaled =
            block_scale_[static_cast<size_t>(input * num_blocks() + k0 / 128)] * (acc / 512.0f);
        total = std::fma(numerics::bf16_to_f32(x.scale[at]), scaled, total);
      } else {
        total = std::fma(numerics::bf16_to_f32(x.scale[at]) / 512.0f, acc, total);
      }
      acc = 0.0f;
    }
    float y = total * ((setup_.block ? 1.0f : sa) * 512.0f);
    if (setup_.numerics == Numerics::kVllm) y = x.channel[static_cast<size_t>(row)] * (sa * acc);
    if (setup_.bias) y = y + x.bias[static_cast<size_t>(row)];
    return std::isnan(y) ? std::bit_cast<float>(0x7fffffffu) : y;
  }

  W4Case setup_;
  Random random_;
  int64_t input_rows_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> source_;
  std::vector<uint8_t> act_;
  std::vector<float> act_scale_;
  std::vector<float> block_scale_;
  std::vector<Expert> experts_;
  std::vector<W4Matrix> matrices_;
  std::vector<const float*> bias_pointers_;
};

// The longest product gives every bit; shorter ones are its first rows: a row does not know how many there are.
// `whole`: of one expert with 130 rows.
inline void expect_every_row_count(const W4Problem& whole, const KernelTable& table) {
  const Buffer<float> expected = whole.expected();
  ThreadPool pool(1);
  Arena arena;
  for (int64_t rows = 0; rows <= 130; ++rows) {
    W4A8Gemm gemm = whole.problem(nullptr);
    const std::array<int64_t, 2> offsets = {0, rows};
    Buffer<float> out = poisoned(rows * gemm.n);
    gemm.rows.offsets = offsets.data();
    gemm.out = out.data();
    table.w4a8_gemm(gemm, {&pool, &arena});
    const Buffer<float> head(expected.begin(), expected.begin() + rows * gemm.n);
    ASSERT_TRUE(same_bits(head, out)) << rows << " rows";
  }
}

}  // namespace quadrille::kernels::test
