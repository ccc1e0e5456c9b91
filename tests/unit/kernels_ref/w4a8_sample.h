// SPDX-License-Identifier: Apache-2.0
// Random grouped W4A8 products for the kernel tests: canonical numbers beside the prepared problem, so that a test can
// follow the contract without the layout.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/api/registry.h"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/fp8_e4m3.h"
#include "numerics/group_scale.h"
#include "prepare/prepare_w4.h"

namespace quadrille::testing {

struct W4A8Shape {
  int64_t n, k, group_size;
  std::vector<int64_t> rows;  // of each expert
};

class W4A8Sample {
 public:
  W4A8Sample(const W4A8Shape& wanted, kernels::Numerics wanted_numerics, unsigned seed)
      : shape(wanted), numerics(wanted_numerics), groups(layout::num_groups(wanted.k, wanted.group_size)) {
    std::mt19937 random(seed);
    fill_rows(random);
    for (size_t e = 0; e < shape.rows.size(); ++e) fill_expert(random);
    for (size_t e = 0; e < shape.rows.size(); ++e) {
      const prepare::CanonicalW4 matrix{.n = shape.n,
                                        .k = shape.k,
                                        .group_size = shape.group_size,
                                        .packed = nullptr,
                                        .codes = q[e].data(),
                                        .scales = scales[e].data()};
      auto one = prepare::prepare_w4(matrix, numerics);
      if (!one) throw std::runtime_error(one.error().message);
      prepared.push_back(std::move(*one));
      views.push_back(prepared.back().view());
    }
  }

  kernels::W4A8Gemm problem(float* out) const {
    kernels::W4A8Gemm gemm;
    gemm.numerics = numerics;
    gemm.n = shape.n;
    gemm.k = shape.k;
    gemm.group_size = shape.group_size;
    gemm.rows = {static_cast<int64_t>(views.size()), offsets.data(), source_row.data()};
    gemm.weights = views.data();
    gemm.act = act.data();
    gemm.act_scale = act_scale.data();
    if (block) gemm.block_scale = kernels::row_block_scales(block_scale.data(), num_blocks());
    gemm.out = out;
    return gemm;
  }

  std::vector<float> run(const kernels::KernelTable& table, const float* const* bias = nullptr) {
    std::vector<float> out(static_cast<size_t>(slots() * shape.n));
    kernels::W4A8Gemm gemm = problem(out.data());
    gemm.bias = bias;
    table.w4a8_gemm(gemm, {&pool, &scratch});
    return out;
  }

  int64_t slots() const { return offsets.back(); }
  int64_t expert_of(int64_t slot) const {
    int64_t e = 0;
    while (offsets[static_cast<size_t>(e) + 1] <= slot) ++e;
    return e;
  }
  const uint8_t* act_row(int64_t slot) const { return act.data() + source_row[static_cast<size_t>(slot)] * shape.k; }
  float row_scale(int64_t slot) const { return act_scale[static_cast<size_t>(source_row[static_cast<size_t>(slot)])]; }
  // `block`: the scale of the 128 columns around k.
  float block_scale_at(int64_t slot, int64_t k) const {
    return block_scale[static_cast<size_t>(source_row[static_cast<size_t>(slot)] * num_blocks() + k / 128)];
  }
  int64_t num_blocks() const { return (shape.k + 127) / 128; }
  int code(int64_t expert, int64_t n, int64_t k) const {
    return q[static_cast<size_t>(expert)][static_cast<size_t>(n * shape.k + k)];
  }
  float scale(int64_t expert, int64_t n, int64_t group) const {
    return quadrille::numerics::bf16_to_f32(
        scales[static_cast<size_t>(expert)][static_cast<size_t>(n * groups + group)]);
  }
  int64_t group_of(int64_t k) const { return shape.group_size == 0 ? 0 : k / shape.group_size; }
  // The weight byte of `vllm`, from the canonical numbers.
  uint8_t vllm_byte(int64_t expert, int64_t n, int64_t k) const {
    const float channel = channel_scale(expert, n);
    const uint8_t c = quadrille::numerics::group_scale_code(scale(expert, n, group_of(k)), channel);
    return quadrille::numerics::vllm_weight_code(quadrille::numerics::group_scale8_code(c), code(expert, n, k));
  }
  float channel_scale(int64_t expert, int64_t n) const {
    float absmax = 0.0f;
    for (int64_t g = 0; g < groups; ++g) absmax = quadrille::numerics::absmax_step(absmax, scale(expert, n, g));
    return quadrille::numerics::channel_scale_of_absmax(absmax);
  }

  W4A8Shape shape;
  kernels::Numerics numerics;
  int64_t groups;
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> source_row;
  std::vector<uint8_t> act;
  std::vector<float> act_scale;
  bool block = false;              // run with block_scale instead of act_scale
  std::vector<float> block_scale;  // [input rows, num_blocks()]
  std::vector<std::vector<int8_t>> q;
  std::vector<std::vector<uint16_t>> scales;
  std::vector<prepare::PreparedW4> prepared;
  std::vector<kernels::W4Matrix> views;
  ThreadPool pool{2};
  Arena scratch;

 private:
  // Slots read input rows in any order, some twice; activations of every size, zeros among them.
  void fill_rows(std::mt19937& random) {
    for (int64_t count : shape.rows) offsets.push_back(offsets.back() + count);
    const int64_t inputs = offsets.back() / 2 + 3;
    for (int64_t s = 0; s < offsets.back(); ++s) source_row.push_back(static_cast<int32_t>(random() % inputs));
    std::normal_distribution<float> normal;
    for (int64_t r = 0; r < inputs; ++r) {
      const float spread = std::ldexp(1.0f, static_cast<int>(random() % 12) - 4);
      for (int64_t i = 0; i < shape.k; ++i) {
        act.push_back(quadrille::numerics::e4m3_from_f32(random() % 8 == 0 ? 0.0f : normal(random) * spread));
      }
      act_scale.push_back(std::ldexp(1.0f + normal(random) * 0.1f, static_cast<int>(random() % 8) - 8));
    }
    for (int64_t i = 0; i < inputs * num_blocks(); ++i) {
      block_scale.push_back(std::ldexp(1.0f + normal(random) * 0.1f, static_cast<int>(random() % 8) - 8));
    }
  }
  void fill_expert(std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 0.01f);
    std::vector<int8_t> codes;
    for (int64_t i = 0; i < shape.n * shape.k; ++i) {
      codes.push_back(static_cast<int8_t>(static_cast<int>(random() % 16) - 8));
    }
    std::vector<uint16_t> row_scales;
    for (int64_t i = 0; i < shape.n * groups; ++i) {
      row_scales.push_back(quadrille::numerics::bf16_from_f32(normal(random)));
    }
    q.push_back(std::move(codes));
    scales.push_back(std::move(row_scales));
  }
};

// Shapes with every group size, tails of k and of n, empty experts, one row and many.
inline std::vector<W4A8Shape> w4a8_shapes() {
  return {{16, 32, 32, {1}},    {24, 128, 128, {3, 0, 5}},   {8, 64, 64, {0, 2}}, {40, 256, 32, {4, 1}},
          {16, 384, 128, {17}}, {56, 320, 64, {2, 0, 0, 9}}, {16, 40, 0, {5}},    {24, 200, 0, {1, 2, 3}},
          {8, 1024, 128, {33}}, {64, 96, 32, {1, 1, 1, 1}},  {16, 152, 64, {6}},  {16, 72, 32, {4}}};
}

// Tables that run here; a test of the others would have nothing to run.
inline std::vector<const kernels::KernelTable*> runnable_tables() {
  std::vector<const kernels::KernelTable*> tables;
  for (const kernels::KernelTable* table : kernels::all_tables()) {
    if (table->unavailable_reason().empty()) tables.push_back(table);
  }
  return tables;
}

}  // namespace quadrille::testing
