// SPDX-License-Identifier: Apache-2.0
// Every table against `ref` within bounds that follow from the formats: how many fp32 roundings a term can meet in the
// CPU order, and how many units of the largest exponent a tensor-core step can lose. And the CPU order to the bit.
#include <gtest/gtest.h>

#include <string>

#include "kernels/ref/tables.h"
#include "numerics/hopper_k32.h"
#include "numerics/w4a8.h"
#include "w4a8_sample.h"

namespace quadrille {
namespace {

using kernels::Numerics;
using numerics::bits_of;
using testing::W4A8Sample;

constexpr double kUnit = 0x1p-24;  // relative error of one fp32 rounding

// (1 + u)^n - 1 for n roundings on the way of a term.
double gamma(int64_t roundings) {
  return static_cast<double>(roundings) * kUnit / (1.0 - static_cast<double>(roundings) * kUnit);
}

// What a bound needs of one output.
struct Size {
  double magnitude = 0;     // sum of |term| of the result
  double hopper_units = 0;  // bound on what the k32 steps lose, in units of the result
  double factor = 0;        // |last factor|: an underflowed step costs 2^-149 times it
  int64_t cpu_roundings = 0;
  int64_t pair_roundings = 0;  // of `vdpbf16`
  int64_t scale_roundings = 0;
};

double weight_value(const W4A8Sample& s, int64_t expert, int64_t n, int64_t k, int* exponent) {
  const uint8_t byte =
      s.numerics == Numerics::kExact ? numerics::exact_weight_code(s.code(expert, n, k)) : s.vllm_byte(expert, n, k);
  *exponent = numerics::e4m3_exponent(byte);
  return numerics::e4m3_to_f32(byte);
}

Size size_of(const W4A8Sample& s, int64_t slot, int64_t n) {
  const bool exact = s.numerics == Numerics::kExact;
  const int64_t expert = s.expert_of(slot), steps = (s.shape.k + 31) / 32;
  const int64_t piece = exact ? numerics::piece_size(s.shape.group_size) : s.shape.k;
  Size size;
  double sum = 0, lost = 0;  // of the chain so far: sum of |products|, and the bound on its error
  for (int64_t step = 0; step < steps; ++step) {
    double largest = 0;
    for (int64_t k = step * 32; k < step * 32 + 32 && k < s.shape.k; ++k) {
      int exponent = 0;
      const double product = numerics::e4m3_to_f32(s.act_row(slot)[k]) * weight_value(s, expert, n, k, &exponent);
      sum += std::fabs(product);
      if (product != 0)
        largest = std::max(largest, std::ldexp(1.0, exponent + numerics::e4m3_exponent(s.act_row(slot)[k])));
    }
    // 33 terms lose less than a unit 2^(top - 13) each, the result less than one of its own 13 bits.
    const double held = sum + lost;
    lost += 0x1p-13 * (33 * std::max(largest, held) + held);
    const bool ends = step + 1 == steps || (exact && (step + 1) * 32 % piece == 0);
    if (!ends) continue;
    double scale = exact ? std::fabs(s.scale(expert, n, s.group_of(step * 32))) : 1.0;
    if (s.block) scale *= s.block_scale_at(slot, step * 32);
    size.magnitude += scale * (sum + lost);
    size.hopper_units += scale * lost;
    size.scale_roundings += s.block ? 2 : 1;  // block: sa_b * acc beside the chain over groups
    sum = lost = 0;
  }
  size.factor = exact ? (s.block ? 1.0 : double{s.row_scale(slot)}) * 512.0
                      : 8.0 * double{s.channel_scale(expert, n)} * double{s.row_scale(slot)};
  size.magnitude *= std::fabs(size.factor);
  size.hopper_units *= std::fabs(size.factor);
  // 16 in e or o, one for e + o, one a step for acc, one a group, two for the factors of the result.
  size.scale_roundings += 3;
  size.pair_roundings = std::min(s.shape.k, piece) + size.scale_roundings;  // a chain of an fma a position
  size.cpu_roundings = 16 + 1 + std::min(steps, (piece + 31) / 32) + size.scale_roundings;
  return size;
}

double bound_of(const kernels::KernelTable& table, const Size& size) {
  const double underflow = static_cast<double>(size.cpu_roundings) * 0x1p-149 * (1.0 + std::fabs(size.factor));
  const double once = gamma(1) * size.magnitude;  // `ref` rounds its result
  if (std::string(table.name) == "ref") return 0.0;
  if (std::string(table.name) == "hopper") {
    return size.hopper_units + gamma(size.scale_roundings) * size.magnitude + once + underflow;
  }
  const bool pairs = std::string(table.name) == "vdpbf16";
  return gamma(pairs ? size.pair_roundings : size.cpu_roundings) * size.magnitude + once + underflow;
}

void expect_within_bounds(W4A8Sample& sample) {
  const auto truth = sample.run(kernels::ref::kRefTable);
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    const auto out = sample.run(*table);
    for (int64_t slot = 0; slot < sample.slots(); ++slot) {
      for (int64_t n = 0; n < sample.shape.n; ++n) {
        const size_t i = static_cast<size_t>(slot * sample.shape.n + n);
        ASSERT_LE(std::fabs(double{out[i]} - double{truth[i]}), bound_of(*table, size_of(sample, slot, n)))
            << table->name << " slot " << slot << " n " << n << " k " << sample.shape.k << " group "
            << sample.shape.group_size << (sample.block ? " block" : "");
      }
    }
  }
}

TEST(W4A8Bounds, EveryTableWithinItsBoundOfRef) {
  unsigned seed = 100;
  for (const auto& shape : testing::w4a8_shapes()) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      W4A8Sample sample(shape, numerics, seed++);
      expect_within_bounds(sample);
      sample.block = numerics == Numerics::kExact;
      if (sample.block) expect_within_bounds(sample);
    }
  }
}

// The bound of the CPU order is sharp enough to see one wrong nibble by one step wherever its activation is not small.
TEST(W4A8Bounds, OneWrongNibbleIsOutside) {
  W4A8Sample sample({16, 256, 64, {6}}, Numerics::kExact, 200);
  const auto truth = sample.run(kernels::ref::kRefTable);
  int seen = 0;
  for (int64_t slot = 0; slot < sample.slots(); ++slot) {
    for (int64_t k = 0; k < 256; ++k) {
      const double a = std::fabs(numerics::e4m3_to_f32(sample.act_row(slot)[k]));
      const double change = a * std::fabs(sample.scale(0, 3, sample.group_of(k))) * double{sample.row_scale(slot)};
      const double bound = bound_of(*kernels::all_tables()[0], size_of(sample, slot, 3));
      seen += change > 2 * bound ? 1 : 0;
    }
  }
  EXPECT_GT(seen, sample.slots() * 256 / 2);
}

// One output in the CPU order, from canonical numbers.
float cpu_order_output(const W4A8Sample& s, int64_t slot, int64_t n) {
  const bool exact = s.numerics == Numerics::kExact;
  const int64_t expert = s.expert_of(slot), steps = (s.shape.k + 31) / 32;
  float acc = 0.0f, total = 0.0f;
  for (int64_t step = 0; step < steps; ++step) {
    float a[32] = {}, w[32] = {};
    for (int64_t i = 0; i < 32 && step * 32 + i < s.shape.k; ++i) {
      const int64_t k = step * 32 + i;
      a[i] = numerics::e4m3_to_f32(s.act_row(slot)[k]);
      w[i] = exact ? static_cast<float>(s.code(expert, n, k)) : numerics::e4m3_to_f32(s.vllm_byte(expert, n, k));
    }
    acc = numerics::cpu_k32(a, w, acc);
    const bool ends = step + 1 == steps || (step + 1) * 32 % numerics::piece_size(s.shape.group_size) == 0;
    if (!exact || !ends) continue;
    const uint16_t scale = numerics::bf16_from_f32(s.scale(expert, n, s.group_of(step * 32)));
    if (s.block) {
      const float sum = acc * numerics::kExactUnit;
      total = numerics::block_group(numerics::bf16_to_f32(scale), s.block_scale_at(slot, step * 32), sum, total);
      acc = 0.0f;
      continue;
    }
    total = numerics::exact_group(numerics::exact_group_scale(scale), acc, total);
    acc = 0.0f;
  }
  if (s.block) return numerics::block_result(total);
  if (exact) return numerics::exact_result(total, s.row_scale(slot));
  return numerics::vllm_result(numerics::channel_scale8(s.channel_scale(expert, n)), s.row_scale(slot), acc);
}

void expect_cpu_order(const kernels::KernelTable& table, W4A8Sample& sample) {
  const auto out = sample.run(table);
  for (int64_t slot = 0; slot < sample.slots(); ++slot) {
    for (int64_t n = 0; n < sample.shape.n; ++n) {
      ASSERT_EQ(bits_of(out[static_cast<size_t>(slot * sample.shape.n + n)]),
                bits_of(cpu_order_output(sample, slot, n)))
          << table.name << " slot " << slot << " n " << n << " k " << sample.shape.k << " group "
          << sample.shape.group_size << (sample.block ? " block" : "");
    }
  }
}

TEST(W4A8CpuOrder, EveryCpuTableToTheBit) {
  int tables = 0;
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    if (table->by_name_only) continue;
    ++tables;
    unsigned seed = 300;
    for (const auto& shape : testing::w4a8_shapes()) {
      for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
        W4A8Sample sample(shape, numerics, seed++);
        sample.act[static_cast<size_t>(sample.source_row[0] * shape.k + shape.k / 2)] = 0xff;  // NaN
        expect_cpu_order(*table, sample);
        sample.block = numerics == Numerics::kExact;
        if (sample.block) expect_cpu_order(*table, sample);
      }
    }
  }
  if (tables == 0) GTEST_SKIP() << "this build has no CPU tables";
}

TEST(W4A8Ref, NanAndInfinitePositions) {
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      W4A8Sample sample({16, 96, 32, {3, 0, 2}}, numerics, 400);
      const int32_t hit = sample.source_row[1];
      sample.act[static_cast<size_t>(hit * 96 + 50)] = 0x7f;
      const auto out = sample.run(*table);
      for (int64_t slot = 0; slot < sample.slots(); ++slot) {
        for (int64_t n = 0; n < 16; ++n) {
          const uint32_t bits = bits_of(out[static_cast<size_t>(slot * 16 + n)]);
          ASSERT_EQ(bits == numerics::kCanonicalNanF32, sample.source_row[static_cast<size_t>(slot)] == hit)
              << table->name;
        }
      }
    }
  }
}

// A row's bits depend on the row and its weights alone.
TEST(W4A8Rows, DoNotKnowTheirNeighbours) {
  for (const kernels::KernelTable* table : testing::runnable_tables()) {
    for (const Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      W4A8Sample sample({24, 192, 64, {37}}, numerics, 500);
      const auto together = sample.run(*table);
      const auto rows = sample.source_row;
      sample.offsets = {0, 1};
      for (size_t slot = 0; slot < rows.size(); ++slot) {
        sample.source_row = {rows[slot]};
        const auto alone = sample.run(*table);
        for (size_t n = 0; n < 24; ++n) ASSERT_EQ(bits_of(alone[n]), bits_of(together[slot * 24 + n])) << table->name;
      }
    }
  }
}

}  // namespace
}  // namespace quadrille
