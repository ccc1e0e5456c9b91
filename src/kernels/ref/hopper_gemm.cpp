// SPDX-License-Identifier: Apache-2.0
// `hopper`: the W4A8 product. A part is one block of 16 out features of one expert; it decodes each k32 step once and
// feeds it to a chunk of rows.
#include "kernels/ref/counted.h"
#include "kernels/ref/hopper_step.h"
#include "layout/w4_lanes16.h"
#include "numerics/group_scale.h"
#include "numerics/int4.h"
#include "numerics/w4a8.h"

namespace quadrille::kernels::ref {
namespace {

constexpr int kLanes = kModelLanes;
constexpr int kStep = kModelStep;
constexpr int64_t kRowChunk = 16;

// e4m3 code -> operand, and (group scale code, nibble) -> operand of the vllm weight.
struct ModelTables {
  ModelOperand code[256];
  ModelOperand product[256][16];

  ModelTables() {
    for (int i = 0; i < 256; ++i) {
      code[i] = model_operand(static_cast<uint8_t>(i));
      for (uint32_t v = 0; v < 16; ++v) {
        product[i][v] = model_operand(numerics::vllm_weight_code(static_cast<uint8_t>(i), numerics::q_of_int4(v)));
      }
    }
  }
};

const ModelTables& model_tables() {
  static const ModelTables tables;
  return tables;
}

struct Part {
  const W4A8Gemm& p;
  const ModelTables& tables;
  int64_t expert;
  int64_t block;
  layout::W4Lanes16 codes;
  layout::ScaleLanes16 scales;
};

// exact: q * 2^-9, whose e4m3 exponent is -6 (stored as 0) for every q but zero.
QD_ALWAYS_INLINE void decode_exact(const Part& part, int64_t step, StepWeights& w) {
  const uint32_t* words = part.p.weights[part.expert].codes + part.codes.word_index(part.block * kLanes, step * kStep);
  for (int i = 0; i < kStep; ++i) {
    const uint32_t* word = words + i / 8 * kLanes;
    const int shift = 28 - i % 8 * 4;
    for (int l = 0; l < kLanes; ++l) {
      const int32_t q = static_cast<int32_t>(word[l] << shift) >> 28;
      w.value[i][l] = static_cast<float>(q) * numerics::kExactUnit;
      w.exponent[i][l] = static_cast<int8_t>(q == 0 ? kNoExponent : 0);
    }
  }
  for (int l = 0; l < kLanes; ++l) w.nan[l] = 0;
}

QD_ALWAYS_INLINE void decode_vllm(const Part& part, int64_t step, StepWeights& w) {
  const W4Matrix& matrix = part.p.weights[part.expert];
  const uint32_t* words = matrix.codes + part.codes.word_index(part.block * kLanes, step * kStep);
  const int64_t group = part.p.group_size == 0 ? 0 : step * kStep / part.p.group_size;
  const uint8_t* scale = matrix.scale_e4m3 + part.scales.offset(part.block * kLanes, group);
  for (int l = 0; l < kLanes; ++l) {
    const ModelOperand* product = part.tables.product[scale[l]];
    w.nan[l] = numerics::e4m3_is_nan(scale[l]) ? 1 : 0;
    for (int i = 0; i < kStep; ++i) {
      const ModelOperand& operand = product[words[i / 8 * kLanes + l] >> (i % 8 * 4) & 15u];
      w.value[i][l] = operand.value;
      w.exponent[i][l] = operand.exponent;
    }
  }
}

QD_ALWAYS_INLINE void load_row(const Part& part, int64_t slot, int64_t step, StepRow& row) {
  const uint8_t* a = part.p.act + input_row(part.p.rows, slot) * part.p.k + step * kStep;
  const int64_t left = part.p.k - step * kStep;
  row.nan = 0;
  for (int i = 0; i < kStep; ++i) {
    const ModelOperand& operand = part.tables.code[i < left ? a[i] : 0];
    row.value[i] = operand.value;
    row.exponent[i] = operand.exponent;
    row.nan |= operand.nan;
  }
}

QD_ALWAYS_INLINE void store_row(const Part& part, int64_t slot, const float* sum) {
  const W4A8Gemm& p = part.p;
  const bool block = p.block_scale.data != nullptr;
  const float act_scale = block ? 1.0f : p.act_scale[input_row(p.rows, slot)];
  const float* bias = p.bias == nullptr ? nullptr : p.bias[part.expert];
  for (int l = 0; l < kLanes && part.block * kLanes + l < p.n; ++l) {
    const int64_t n = part.block * kLanes + l;
    float y = 0.0f;
    if (block) {
      y = numerics::block_result(sum[l]);
    } else if (p.numerics == Numerics::kExact) {
      y = numerics::exact_result(sum[l], act_scale);
    } else {
      y = numerics::vllm_result(p.weights[part.expert].channel_scale[n], act_scale, sum[l]);
    }
    p.out[slot * p.n + n] = bias == nullptr ? y : numerics::canonical(y + bias[n]);
  }
}

// total = fmaf(s_g, acc, total), for `block` with sa_b * acc; acc begins anew.
QD_ALWAYS_INLINE void fold_group(const Part& part, int64_t slot, int64_t step, const float* group_scale, float* acc,
                                 float* total) {
  const BlockScales& scales = part.p.block_scale;
  const bool block = scales.data != nullptr;
  const float act_scale =
      block ? scales.of(part.expert, input_row(part.p.rows, slot), step * kStep / kScaleBlock) : 1.0f;
  for (int l = 0; l < kLanes; ++l) {
    total[l] = block ? numerics::block_group(group_scale[l], act_scale, acc[l], total[l])
                     : numerics::exact_group(group_scale[l], acc[l], total[l]);
    acc[l] = 0.0f;
  }
}

// Rows [first, last) of the part's expert, at most kRowChunk.
QD_ALWAYS_INLINE void multiply_rows(const Part& part, int64_t first, int64_t last) {
  const W4A8Gemm& p = part.p;
  const bool exact = p.numerics == Numerics::kExact;
  const int64_t steps = part.codes.padded_k() / kStep;
  alignas(64) float acc[kRowChunk][kLanes] = {};
  alignas(64) float total[kRowChunk][kLanes] = {};
  StepWeights weights;
  StepRow row;
  for (int64_t step = 0; step < steps; ++step) {
    exact ? decode_exact(part, step, weights) : decode_vllm(part, step, weights);
    const bool ends = step + 1 == steps || (step + 1) * kStep % numerics::piece_size(p.group_size) == 0;
    float group_scale[kLanes] = {};
    if (exact && ends) {
      const int64_t group = p.group_size == 0 ? 0 : step * kStep / p.group_size;
      const uint16_t* scale = p.weights[part.expert].scale_bf16 + part.scales.offset(part.block * kLanes, group);
      for (int l = 0; l < kLanes; ++l) group_scale[l] = numerics::bf16_to_f32(scale[l]);
    }
    for (int64_t slot = first; slot < last; ++slot) {
      float* c = acc[slot - first];
      load_row(part, slot, step, row);
      model_step(row, weights, c);
      if (exact && ends) fold_group(part, slot, step, group_scale, c, total[slot - first]);
    }
  }
  for (int64_t slot = first; slot < last; ++slot)
    store_row(part, slot, exact ? total[slot - first] : acc[slot - first]);
}

void multiply_rows_plain(const Part& part, int64_t first, int64_t last) {
  multiply_rows(part, first, last);
}
QD_TARGET_FMA void multiply_rows_fma(const Part& part, int64_t first, int64_t last) {
  multiply_rows(part, first, last);
}

}  // namespace

void hopper_w4a8_gemm(const W4A8Gemm& p, const KernelContext& context) {
  const layout::W4Lanes16 codes{p.n, p.k};
  const layout::ScaleLanes16 scales{p.n, layout::num_groups(p.k, p.group_size)};
  const ModelTables& tables = model_tables();
  const auto multiply = has_fma() ? multiply_rows_fma : multiply_rows_plain;
  for_parts(context, p.rows.num_experts * codes.blocks(), [&](int64_t index) {
    const Part part{p, tables, index / codes.blocks(), index % codes.blocks(), codes, scales};
    const int64_t end = p.rows.offsets[part.expert + 1];
    for (int64_t first = p.rows.offsets[part.expert]; first < end; first += kRowChunk) {
      multiply(part, first, first + kRowChunk < end ? first + kRowChunk : end);
    }
  });
}

}  // namespace quadrille::kernels::ref
