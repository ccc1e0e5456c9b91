// SPDX-License-Identifier: Apache-2.0
// `hopper`: the dense bf16 product, one fp32 fma chain over k an output. Four rows share the loads of a block.
#include "kernels/ref/counted.h"
#include "kernels/ref/hopper_kernels.h"
#include "layout/bf16_lanes16.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::ref {
namespace {

constexpr int kLanes = layout::kLanes;
constexpr int64_t kRows = 4;

struct Part {
  const Bf16Gemm& p;
  int64_t expert;
  int64_t block;
};

// Rows [first, first + Rows) of the part's expert.
template <int64_t Rows>
QD_ALWAYS_INLINE void chain_rows(const Part& part, int64_t first) {
  const Bf16Gemm& p = part.p;
  const layout::Bf16Lanes16 map{p.n, p.k};
  const uint16_t* weight = p.weights[part.expert] + map.offset(part.block * kLanes, 0);
  const float* x[Rows];
  for (int64_t r = 0; r < Rows; ++r) x[r] = p.x + input_row(p.rows, first + r) * p.k;
  alignas(64) float acc[Rows][kLanes] = {};
  for (int64_t i = 0; i < p.k; ++i) {
    for (int64_t r = 0; r < Rows; ++r) {
      const float value = x[r][i];
      for (int l = 0; l < kLanes; ++l) {
        acc[r][l] = __builtin_fmaf(value, numerics::bf16_to_f32(weight[i * kLanes + l]), acc[r][l]);
      }
    }
  }
  const float* bias = p.bias == nullptr ? nullptr : p.bias[part.expert];
  for (int64_t r = 0; r < Rows; ++r) {
    for (int l = 0; l < kLanes && part.block * kLanes + l < p.n; ++l) {
      const int64_t n = part.block * kLanes + l;
      const float y = bias == nullptr ? acc[r][l] : acc[r][l] + bias[n];
      p.out[(first + r) * p.n + n] = numerics::round_output(y, p.rounding == Rounding::kBf16);
    }
  }
}

QD_ALWAYS_INLINE void chain_part(const Part& part) {
  const int64_t end = part.p.rows.offsets[part.expert + 1];
  int64_t slot = part.p.rows.offsets[part.expert];
  for (; slot + kRows <= end; slot += kRows) chain_rows<kRows>(part, slot);
  for (; slot < end; ++slot) chain_rows<1>(part, slot);
}

void chain_part_plain(const Part& part) {
  chain_part(part);
}
QD_TARGET_FMA void chain_part_fma(const Part& part) {
  chain_part(part);
}

}  // namespace

void hopper_bf16_gemm(const Bf16Gemm& p, const KernelContext& context) {
  const int64_t blocks = layout::ceil_div(p.n, kLanes);
  const auto multiply = has_fma() ? chain_part_fma : chain_part_plain;
  for_parts(context, p.rows.num_experts * blocks, [&](int64_t index) {
    multiply(Part{p, index / blocks, index % blocks});
  });
}

}  // namespace quadrille::kernels::ref
