// SPDX-License-Identifier: Apache-2.0
// The row-wise steps of every CPU table against the scalar functions of numerics (through the reference table), bit for
// bit, at widths that leave every kind of tail.
#include <array>
#include <cmath>
#include <limits>

#include "cpu_tables.h"
#include "kernels/ref/tables.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::test {
namespace {

constexpr std::array<int64_t, 11> kWidths = {1, 3, 8, 15, 16, 31, 32, 33, 64, 100, 257};
constexpr std::array kRoundings = {Rounding::kBf16, Rounding::kF32};
const KernelTable& scalar = ref::kHopperTable;

class Rowwise : public CpuTable {
 protected:
  // Both tables fill a poisoned copy of `out`; `call(table, context, data)`.
  template <typename T, typename Call>
  void expect_same(const Buffer<T>& out, Call&& call) {
    Buffer<T> expected = out;
    call(scalar, KernelContext{&contexts_.pools[0], &contexts_.arena}, expected.data());
    contexts_.each([&](const KernelContext& context) {
      Buffer<T> found = out;
      call(table(), context, found.data());
      EXPECT_TRUE(same_bits(expected, found));
    });
  }
  // Normal numbers over many magnitudes, with NaN, infinities, zeros and subnormals strewn in.
  Buffer<float> wild(int64_t size) {
    const float inf = std::numeric_limits<float>::infinity();
    const std::array<float, 9> strange = {inf,    -inf,   0.0f,  -0.0f,  std::bit_cast<float>(0x7fc12345u),
                                          1e-40f, -3e38f, 88.7f, -103.5f};
    Buffer<float> v = random_.normals(size);
    for (float& x : v) {
      x *= std::exp2(static_cast<float>(random_.below(20) - 10));
      if (random_.below(40) == 0) x = strange[static_cast<size_t>(random_.below(9))];
    }
    return v;
  }
  Contexts contexts_;
  Random random_{1};
};

TEST_P(Rowwise, QuantizeRows) {
  for (const int64_t k : kWidths) {
    for (const bool strange : {false, true}) {
      SCOPED_TRACE(k);
      const int64_t rows = 41;
      Buffer<float> x = strange ? wild(rows * k) : random_.normals(rows * k);
      for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(i)] = 0.0f;
      for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(k + i)] = std::numeric_limits<float>::quiet_NaN();
      Buffer<float> scale = poisoned(rows), expected_scale = poisoned(rows);
      expect_same(Buffer<uint8_t>(static_cast<size_t>(rows * k), 0xa5),
                  [&](const KernelTable& t, const KernelContext& context, uint8_t* act) {
                    QuantizeRows p;
                    p.num_rows = rows;
                    p.k = k;
                    p.x = x.data();
                    p.act = act;
                    p.act_scale = &t == &scalar ? expected_scale.data() : scale.data();
                    t.quantize_rows(p, context);
                  });
      EXPECT_TRUE(same_bits(expected_scale, scale));
    }
  }
}

// Every representable quotient near a rounding boundary of e4m3: all codes' midpoints and their neighbours.
TEST_P(Rowwise, QuantizeEveryE4m3Boundary) {
  Buffer<float> x = {448.0f};
  for (uint32_t bits = std::bit_cast<uint32_t>(0x1p-12f); bits < std::bit_cast<uint32_t>(460.0f); bits += 1u << 18) {
    for (const int32_t near : {-1, 0, 1}) {
      x.push_back(std::min(448.0f, std::bit_cast<float>(bits + static_cast<uint32_t>(near))));
      x.push_back(-x.back());
    }
  }
  Buffer<float> scale = poisoned(1);
  expect_same(Buffer<uint8_t>(x.size(), 0xa5), [&](const KernelTable& t, const KernelContext& context, uint8_t* act) {
    QuantizeRows p;
    p.num_rows = 1;
    p.k = static_cast<int64_t>(x.size());
    p.x = x.data();
    p.act = act;
    p.act_scale = scale.data();
    t.quantize_rows(p, context);
  });
  EXPECT_EQ(scale[0], 1.0f);
}

TEST_P(Rowwise, Activations) {
  for (const Activation kind :
       {Activation::kSilu, Activation::kClampedSwiglu, Activation::kGeluTanh, Activation::kRelu2}) {
    for (const Rounding rounding : kRoundings) {
      for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
        for (const int64_t width : kWidths) {
          SCOPED_TRACE(width);
          const Buffer<float> gate_up = wild(37 * (kind == Activation::kRelu2 ? 1 : 2) * width);
          expect_same(poisoned(37 * width), [&](const KernelTable& t, const KernelContext& context, float* out) {
            GatedActivation p;
            p.activation = {.kind = kind};
            p.numerics = numerics;
            p.rounding = rounding;
            p.num_rows = 37;
            p.width = width;
            p.gate_up = gate_up.data();
            p.out = out;
            t.gated_activation(p, context);
          });
        }
      }
    }
  }
}

// exp over a fine grid of its whole range, through silu.
TEST_P(Rowwise, SiluOverTheRangeOfExp) {
  const int64_t width = 1 << 18;
  Buffer<float> gate_up(static_cast<size_t>(2 * width), 1.0f);
  for (int64_t i = 0; i < width; ++i) {
    gate_up[static_cast<size_t>(i)] = -110.0f + 220.0f * static_cast<float>(i) / static_cast<float>(width);
  }
  expect_same(poisoned(width), [&](const KernelTable& t, const KernelContext& context, float* out) {
    GatedActivation p;
    p.rounding = Rounding::kF32;
    p.num_rows = 1;
    p.width = width;
    p.gate_up = gate_up.data();
    p.out = out;
    t.gated_activation(p, context);
  });
}

TEST_P(Rowwise, RmsNorm) {
  for (const Rounding rounding : kRoundings) {
    for (const int64_t width : kWidths) {
      SCOPED_TRACE(width);
      const int64_t stride = width + 5;
      Buffer<float> x = random_.normals(29 * stride);
      x[static_cast<size_t>(3 * stride)] = std::numeric_limits<float>::quiet_NaN();
      x[static_cast<size_t>(4 * stride)] = std::numeric_limits<float>::infinity();
      const Buffer<uint16_t> weight = random_.bf16s(width);
      for (const bool in_place : {false, true}) {
        expect_same(in_place ? x : poisoned(29 * stride),
                    [&](const KernelTable& t, const KernelContext& context, float* out) {
                      RmsNorm p;
                      p.rounding = rounding;
                      p.num_rows = 29;
                      p.width = width;
                      p.row_stride = stride;
                      p.eps = 1e-6f;
                      p.x = in_place ? out : x.data();
                      p.weight = weight.data();
                      p.out = out;
                      t.rms_norm(p, context);
                    });
      }
    }
  }
}

TEST_P(Rowwise, Rope) {
  for (const Rounding rounding : kRoundings) {
    for (const int64_t head_dim : {2, 10, 32, 64, 80, 128}) {
      for (const int64_t rotary : {head_dim, head_dim / 2 / 2 * 2}) {
        SCOPED_TRACE(head_dim);
        const int64_t tokens = 23, heads = 5, positions = 40, stride = heads * head_dim + 3;
        const Buffer<float> cos = random_.normals(positions * rotary / 2 + 1);
        const Buffer<float> sin = random_.normals(positions * rotary / 2 + 1);
        std::vector<int32_t> position;
        for (int64_t t = 0; t < tokens; ++t) position.push_back(static_cast<int32_t>(random_.below(positions)));
        expect_same(random_.normals(tokens * stride),
                    [&](const KernelTable& t, const KernelContext& context, float* x) {
                      Rope p;
                      p.rounding = rounding;
                      p.num_tokens = tokens;
                      p.num_heads = heads;
                      p.head_dim = head_dim;
                      p.rotary_dim = rotary;
                      p.token_stride = stride;
                      p.cos = cos.data();
                      p.sin = sin.data();
                      p.position = position.data();
                      p.x = x;
                      t.rope(p, context);
                    });
      }
    }
  }
}

TEST_P(Rowwise, RouterLogits) {
  for (const int64_t k : kWidths) {
    SCOPED_TRACE(k);
    const int64_t tokens = 19, experts = 60;
    Buffer<float> x = random_.normals(tokens * k);
    x[static_cast<size_t>(2 * k)] = std::numeric_limits<float>::quiet_NaN();
    for (int64_t i = 0; i < k; ++i) x[static_cast<size_t>(3 * k + i)] *= 1e-38f;
    const Buffer<uint16_t> weight = random_.bf16s(experts * k);
    expect_same(poisoned(tokens * experts), [&](const KernelTable& t, const KernelContext& context, float* logits) {
      RouterLogits p;
      p.num_tokens = tokens;
      p.num_experts = experts;
      p.k = k;
      p.x = x.data();
      p.weight = weight.data();
      p.logits = logits;
      t.router_logits(p, context);
    });
  }
}

TEST_P(Rowwise, Combine) {
  for (const Rounding rounding : kRoundings) {
    for (const int64_t width : kWidths) {
      for (const int shared_form : {0, 1, 2}) {
        SCOPED_TRACE(width);
        const int64_t tokens = 31, top_k = 4, slots = tokens * top_k;
        const Buffer<float> rows = wild(slots * width), shared = random_.normals(tokens * width);
        const Buffer<float> weight = random_.normals(slots), gate = random_.normals(tokens);
        std::vector<int32_t> slot;
        for (int64_t i = 0; i < slots; ++i) {
          slot.push_back(random_.below(5) == 0 ? -1 : static_cast<int32_t>(random_.below(slots)));
        }
        expect_same(poisoned(tokens * width), [&](const KernelTable& t, const KernelContext& context, float* out) {
          Combine p;
          p.rounding = rounding;
          p.num_tokens = tokens;
          p.top_k = top_k;
          p.width = width;
          p.rows = rows.data();
          p.slot = slot.data();
          p.weight = weight.data();
          p.shared = shared_form > 0 ? shared.data() : nullptr;
          p.shared_gate = shared_form > 1 ? gate.data() : nullptr;
          p.out = out;
          t.combine(p, context);
        });
      }
    }
  }
}

TEST_P(Rowwise, AddResidual) {
  for (const Rounding rounding : kRoundings) {
    for (const int64_t count : {0, 1, 15, 16, 100, 4097, 100003}) {
      const Buffer<float> y = wild(count);
      expect_same(wild(count), [&](const KernelTable& t, const KernelContext& context, float* x) {
        AddResidual p;
        p.rounding = rounding;
        p.count = count;
        p.x = x;
        p.y = y.data();
        t.add_residual(p, context);
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tables, Rowwise, every_cpu_table(), table_name);

}  // namespace
}  // namespace quadrille::kernels::test
