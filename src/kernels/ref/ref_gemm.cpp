// SPDX-License-Identifier: Apache-2.0
// `ref`: the W4A8 and the dense product in double. Every product of two codes is exact in double, so a sum differs from
// the true one by less than its number of terms times 2^-53.
#include "kernels/ref/counted.h"
#include "kernels/ref/ref_kernels.h"
#include "layout/bf16_lanes16.h"
#include "layout/w4_lanes16.h"
#include "numerics/elementwise.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/group_scale.h"
#include "numerics/int4.h"
#include "numerics/w4a8.h"

namespace quadrille::kernels::ref {
namespace {

constexpr int kLanes = layout::kLanes;
constexpr int kStep = numerics::kStep;
constexpr int kRowChunk = 8;  // rows that share one decoding of a step's weights

// Value and fold of one block of 16 out features.
struct Block {
  const W4A8Gemm& p;
  const W4Matrix& matrix;
  int64_t block;
  layout::W4Lanes16 codes;
  layout::ScaleLanes16 scales;

  int64_t group_of(int64_t step) const { return p.group_size == 0 ? 0 : step * kStep / p.group_size; }

  // weight[32][16] of one step: q * 2^-9 for `exact`, the e4m3 value of s8 * q for `vllm`.
  void decode(int64_t step, double (*weight)[kLanes]) const {
    for (int i = 0; i < kStep; ++i) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t row = block * kLanes + lane;
        const uint32_t word = matrix.codes[codes.word_index(row, step * kStep + i)];
        const int q = numerics::q_of_int4(numerics::nibble(word, i % 8));
        if (p.numerics == Numerics::kExact) {
          weight[i][lane] = q * double{numerics::kExactUnit};
        } else {
          const uint8_t scale = matrix.scale_e4m3[scales.offset(row, group_of(step))];
          weight[i][lane] = numerics::e4m3_to_f32(numerics::vllm_weight_code(scale, q));
        }
      }
    }
  }

  double group_scale(int64_t step, int lane) const {
    return numerics::bf16_to_f32(matrix.scale_bf16[scales.offset(block * kLanes + lane, group_of(step))]);
  }
};

// The activation scale of the 128 columns that a step lies in; 1 where the scale of the row comes at the end.
double block_scale(const W4A8Gemm& p, int64_t expert, int64_t slot, int64_t step) {
  if (p.block_scale.data == nullptr) return 1.0;
  return p.block_scale.of(expert, input_row(p.rows, slot), step * kStep / kScaleBlock);
}

void store(const W4A8Gemm& p, const Block& b, int64_t expert, int64_t slot, const double* total) {
  const double scale = p.block_scale.data != nullptr ? 1.0 : p.act_scale[input_row(p.rows, slot)];
  for (int lane = 0; lane < kLanes && b.block * kLanes + lane < p.n; ++lane) {
    const int64_t row = b.block * kLanes + lane;
    double y = 0;
    if (p.numerics == Numerics::kExact) {
      y = total[lane] * (scale * 512.0);
    } else {
      y = b.matrix.channel_scale[row] * (scale * total[lane]);
    }
    float out = static_cast<float>(y);
    if (p.bias != nullptr && p.bias[expert] != nullptr) out = out + p.bias[expert][row];
    p.out[slot * p.n + row] = numerics::canonical(out);
  }
}

// Rows [first, last) of one expert, at most kRowChunk, for one block.
void multiply_chunk(const Block& b, int64_t expert, int64_t first, int64_t last) {
  const W4A8Gemm& p = b.p;
  double acc[kRowChunk][kLanes] = {};
  double total[kRowChunk][kLanes] = {};
  double weight[kStep][kLanes];
  const int64_t steps = b.codes.padded_k() / kStep;
  const bool exact = p.numerics == Numerics::kExact;
  for (int64_t step = 0; step < steps; ++step) {
    b.decode(step, weight);
    const int64_t filled = p.k - step * kStep < kStep ? p.k - step * kStep : kStep;
    const bool ends = step + 1 == steps || (step + 1) * kStep % numerics::piece_size(p.group_size) == 0;
    for (int64_t slot = first; slot < last; ++slot) {
      const uint8_t* a = p.act + input_row(p.rows, slot) * p.k + step * kStep;
      double* sum = acc[slot - first];
      for (int64_t i = 0; i < filled; ++i) {
        const double value = numerics::e4m3_to_f32(a[i]);
        for (int lane = 0; lane < kLanes; ++lane) sum[lane] += value * weight[i][lane];
      }
      if (!exact || !ends) continue;
      const double act = block_scale(p, expert, slot, step);
      for (int lane = 0; lane < kLanes; ++lane) {
        total[slot - first][lane] += b.group_scale(step, lane) * (act * sum[lane]);
        sum[lane] = 0;
      }
    }
  }
  for (int64_t slot = first; slot < last; ++slot) {
    store(p, b, expert, slot, exact ? total[slot - first] : acc[slot - first]);
  }
}

void dense_row(const Bf16Gemm& p, int64_t expert, int64_t block, int64_t slot) {
  const layout::Bf16Lanes16 map{p.n, p.k};
  const float* x = p.x + input_row(p.rows, slot) * p.k;
  const uint16_t* weight = p.weights[expert] + map.offset(block * kLanes, 0);
  double sum[kLanes] = {};
  for (int64_t i = 0; i < p.k; ++i) {
    const double value = x[i];
    for (int lane = 0; lane < kLanes; ++lane) sum[lane] += value * numerics::bf16_to_f32(weight[i * kLanes + lane]);
  }
  for (int lane = 0; lane < kLanes && block * kLanes + lane < p.n; ++lane) {
    const int64_t row = block * kLanes + lane;
    float out = static_cast<float>(sum[lane]);
    if (p.bias != nullptr && p.bias[expert] != nullptr) out = out + p.bias[expert][row];
    p.out[slot * p.n + row] = numerics::round_output(out, p.rounding == Rounding::kBf16);
  }
}

}  // namespace

void wide_w4a8_gemm(const W4A8Gemm& p, const KernelContext& context) {
  const layout::W4Lanes16 codes{p.n, p.k};
  const layout::ScaleLanes16 scales{p.n, layout::num_groups(p.k, p.group_size)};
  for_parts(context, p.rows.num_experts * codes.blocks(), [&](int64_t part) {
    const int64_t expert = part / codes.blocks();
    const Block block{p, p.weights[expert], part % codes.blocks(), codes, scales};
    const int64_t end = p.rows.offsets[expert + 1];
    for (int64_t first = p.rows.offsets[expert]; first < end; first += kRowChunk) {
      multiply_chunk(block, expert, first, first + kRowChunk < end ? first + kRowChunk : end);
    }
  });
}

void wide_bf16_gemm(const Bf16Gemm& p, const KernelContext& context) {
  const int64_t blocks = layout::ceil_div(p.n, kLanes);
  for_parts(context, p.rows.num_experts * blocks, [&](int64_t part) {
    const int64_t expert = part / blocks;
    for (int64_t slot = p.rows.offsets[expert]; slot < p.rows.offsets[expert + 1]; ++slot) {
      dense_row(p, expert, part % blocks, slot);
    }
  });
}

}  // namespace quadrille::kernels::ref
