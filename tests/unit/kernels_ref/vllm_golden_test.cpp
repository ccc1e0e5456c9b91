// SPDX-License-Identifier: Apache-2.0
// The table `hopper` and the vllm preparation against real bytes of vLLM on an H100: every step, no differing bit.
#include <gtest/gtest.h>

#include "kernels/ref/tables.h"
#include "numerics/bf16.h"
#include "prepare/prepare_w4.h"
#include "prepare/vllm_stages.h"
#include "support/golden.h"
#include "support/tensors.h"

namespace quadrille {
namespace {

using kernels::Numerics;
using kernels::Rounding;
using testing::differences;
using testing::Tensors;

const kernels::KernelTable& hopper() {
  return kernels::ref::kHopperTable;
}

std::vector<float> widen(const std::vector<uint16_t>& codes) {
  std::vector<float> out;
  for (uint16_t code : codes) out.push_back(numerics::bf16_to_f32(code));
  return out;
}

std::vector<uint16_t> narrow(const std::vector<float>& values) {
  std::vector<uint16_t> out;
  for (float value : values) out.push_back(numerics::bf16_from_f32(value));
  return out;
}

void round_in_place(std::vector<float>& values) {
  for (float& value : values) value = numerics::round_to_bf16(value);
}

class VllmGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string name = GetParam();
    std::string path = testing::data_path("kernels/vllm_h100_cut.safetensors");
    if (name == "whole") {
      const auto golden = testing::golden_path("vllm_h100.safetensors");
      if (!golden) GTEST_SKIP() << testing::kNoGolden;
      path = *golden;
    }
    tensors.emplace(path);
  }

  kernels::KernelContext context() { return {&pool, &scratch}; }

  // Prepared matrices of a packed stack [E, N, K/8] with scales [E, N, G].
  std::vector<prepare::PreparedW4> prepare_stack(const std::string& packed, const std::string& scale) {
    const auto shape = tensors->shape(packed);
    const int64_t n = shape[1], k = shape[2] * 8, groups = tensors->shape(scale)[2];
    words = tensors->get<uint32_t>(packed);
    scales = tensors->get<uint16_t>(scale);
    std::vector<prepare::PreparedW4> out;
    for (int64_t e = 0; e < shape[0]; ++e) {
      const prepare::CanonicalW4 matrix{.n = n,
                                        .k = k,
                                        .group_size = k / groups,
                                        .packed = words.data() + e * n * k / 8,
                                        .scales = scales.data() + e * n * groups};
      auto prepared = prepare::prepare_w4(matrix, Numerics::kVllm, &pool);
      if (!prepared) throw std::runtime_error(prepared.error().message);
      out.push_back(std::move(*prepared));
    }
    return out;
  }

  // Quantised rows of x [rows, k], compared with the stored codes and scales.
  void quantize_and_compare(const std::vector<float>& x, int64_t k, const std::string& codes_name) {
    const int64_t rows = static_cast<int64_t>(x.size()) / k;
    act.assign(x.size(), 0);
    act_scale.assign(static_cast<size_t>(rows), 0);
    hopper().quantize_rows({rows, k, x.data(), act.data(), act_scale.data()}, context());
    EXPECT_EQ(differences(act, tensors->get<uint8_t>(codes_name)), "") << codes_name;
    EXPECT_EQ(differences(act_scale, tensors->get<float>(codes_name + "_scale")), "") << codes_name << "_scale";
  }

  std::vector<float> multiply(const std::vector<prepare::PreparedW4>& stack, const std::vector<int64_t>& offsets,
                              const int32_t* source_row) {
    std::vector<kernels::W4Matrix> views;
    for (const auto& matrix : stack) views.push_back(matrix.view());
    const int64_t n = stack[0].n;
    std::vector<float> out(static_cast<size_t>(offsets.back() * n));
    kernels::W4A8Gemm gemm;
    gemm.numerics = Numerics::kVllm;
    gemm.n = n;
    gemm.k = stack[0].k;
    gemm.group_size = stack[0].group_size;
    gemm.rows = {static_cast<int64_t>(stack.size()), offsets.data(), source_row};
    gemm.weights = views.data();
    gemm.act = act.data();
    gemm.act_scale = act_scale.data();
    gemm.out = out.data();
    hopper().w4a8_gemm(gemm, context());
    return out;
  }

  std::optional<Tensors> tensors;
  ThreadPool pool{2};
  Arena scratch;
  std::vector<uint32_t> words;
  std::vector<uint16_t> scales;
  std::vector<uint8_t> act;
  std::vector<float> act_scale;
};

TEST_P(VllmGolden, GroupedGemms) {
  int problems = 0;
  for (const std::string p : {"p0.", "p1.", "p2."}) {
    if (!tensors->has(p + "x")) continue;
    ++problems;
    const auto stack = prepare_stack(p + "weight_packed", p + "weight_scale");
    quantize_and_compare(widen(tensors->get<uint16_t>(p + "x")), stack[0].k, p + "a");
    std::vector<int64_t> offsets = tensors->get<int64_t>(p + "expert_offsets");
    offsets.push_back(static_cast<int64_t>(act_scale.size()));
    const auto out = multiply(stack, offsets, nullptr);
    EXPECT_EQ(differences(narrow(out), tensors->get<uint16_t>(p + "out")), "") << p;
  }
  EXPECT_GE(problems, 2);
}

TEST_P(VllmGolden, PreparedBytes) {
  for (const std::string p : {"p0.", "p1.", "p2."}) {
    if (!tensors->has(p + "x")) continue;
    const auto shape = tensors->shape(p + "weight_packed");
    const int64_t experts = shape[0], n = shape[1], k = shape[2] * 8, groups = tensors->shape(p + "weight_scale")[2];
    auto packed = tensors->get<uint32_t>(p + "weight_packed");
    prepare::int4_in_place(packed);
    prepare::unified_in_place(packed);
    std::vector<uint32_t> reordered;
    for (int64_t e = 0; e < experts; ++e) {
      auto one = prepare::reorder(std::span(packed).subspan(static_cast<size_t>(e * n * k / 8), n * k / 8), n, k);
      ASSERT_TRUE(one) << one.error().message;
      reordered.insert(reordered.end(), one->begin(), one->end());
    }
    EXPECT_EQ(differences(reordered, tensors->get<uint32_t>(p + "weight_reordered")), "") << p;
    const auto split = prepare::split_scales(tensors->get<uint16_t>(p + "weight_scale"), experts * n, groups);
    ASSERT_TRUE(split) << split.error().message;
    EXPECT_EQ(differences(split->group_scale8_e4m3, tensors->get<uint8_t>(p + "group_scale_fp8")), "") << p;
    EXPECT_EQ(differences(split->channel_scale8, tensors->get<float>(p + "channel_scale")), "") << p;
    const auto tables = prepare::packed_scale_tables(split->group_scale8_e4m3, experts, n, groups);
    EXPECT_EQ(differences(tables, tensors->get<uint8_t>(p + "group_scale_packed")), "") << p;
  }
}

TEST_P(VllmGolden, SmallMoeLayer) {
  constexpr int64_t kTopK = 2;
  const auto ids = tensors->get<int32_t>("layer.topk_ids");
  const int64_t slots = static_cast<int64_t>(ids.size()), tokens = slots / kTopK;
  // Counting sort of the slots by expert.
  const int64_t experts = tensors->shape("layer.w13_packed")[0];
  std::vector<int64_t> offsets(static_cast<size_t>(experts) + 1, 0);
  for (int32_t id : ids) ++offsets[static_cast<size_t>(id) + 1];
  for (size_t e = 1; e < offsets.size(); ++e) offsets[e] += offsets[e - 1];
  std::vector<int64_t> next = offsets;
  std::vector<int32_t> permuted(ids.size()), inverse(ids.size()), source(ids.size());
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    const size_t row = static_cast<size_t>(next[static_cast<size_t>(ids[slot])]++);
    permuted[row] = static_cast<int32_t>(slot);
    inverse[slot] = static_cast<int32_t>(row);
    source[row] = static_cast<int32_t>(slot) / kTopK;
  }
  EXPECT_EQ(differences(offsets, tensors->get<int64_t>("layer.expert_first_token_offset")), "");
  EXPECT_EQ(differences(permuted, tensors->get<int32_t>("layer.permuted_idx")), "");
  EXPECT_EQ(differences(inverse, tensors->get<int32_t>("layer.inv_permuted_idx")), "");

  const auto w13 = prepare_stack("layer.w13_packed", "layer.w13_scale");
  quantize_and_compare(widen(tensors->get<uint16_t>("layer.x")), w13[0].k, "layer.a1");
  const auto gate_up = multiply(w13, offsets, source.data());
  EXPECT_EQ(differences(narrow(gate_up), tensors->get<uint16_t>("layer.gemm1_out")), "");

  const int64_t width = w13[0].n / 2;
  std::vector<float> h(static_cast<size_t>(slots * width));
  hopper().gated_activation({{}, Numerics::kVllm, Rounding::kBf16, slots, width, gate_up.data(), h.data()}, context());
  EXPECT_EQ(differences(narrow(h), tensors->get<uint16_t>("layer.act")), "");
  quantize_and_compare(h, width, "layer.a2");

  const auto w2 = prepare_stack("layer.w2_packed", "layer.w2_scale");
  auto rows = multiply(w2, offsets, nullptr);
  round_in_place(rows);
  EXPECT_EQ(differences(narrow(rows), tensors->get<uint16_t>("layer.gemm2_out")), "");

  const auto weight = tensors->get<float>("layer.topk_weights");
  std::vector<float> out(static_cast<size_t>(tokens * w2[0].n));
  kernels::Combine combine;
  combine.num_tokens = tokens;
  combine.top_k = kTopK;
  combine.width = w2[0].n;
  combine.rows = rows.data();
  combine.slot = inverse.data();
  combine.weight = weight.data();
  combine.out = out.data();
  hopper().combine(combine, context());
  EXPECT_EQ(differences(narrow(out), tensors->get<uint16_t>("layer.out")), "");
}

INSTANTIATE_TEST_SUITE_P(Files, VllmGolden, ::testing::Values("cut", "whole"),
                         [](const auto& file) { return std::string(file.param); });

}  // namespace
}  // namespace quadrille
