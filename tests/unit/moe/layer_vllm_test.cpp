// SPDX-License-Identifier: Apache-2.0
// The MoE layer in the `vllm` numerics on the `hopper` table against what vLLM computed on an H100: every stage without
// a differing bit.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "formats/safetensors.h"
#include "kernels/api/registry.h"
#include "moe/layer.h"
#include "numerics/bf16.h"
#include "prepare/prepare_w4.h"
#include "support/golden.h"

namespace quadrille::moe {
namespace {

template <typename T>
std::vector<T> values(const formats::SafetensorsFile& file, const std::string& name) {
  const formats::TensorView* view = file.find("layer." + name);
  if (view == nullptr) throw std::runtime_error("no tensor layer." + name);
  std::vector<T> out(view->bytes.size() / sizeof(T));
  std::memcpy(out.data(), view->bytes.data(), view->bytes.size());
  return out;
}

// Each stage as the bytes that the golden file would hold.
class Bytes : public LayerObserver {
 public:
  void stage(const Stage& stage) override {
    int64_t count = 1;
    for (const int64_t size : stage.shape) count *= size;
    if (stage.type == StageType::kBf16InF32) {
      std::vector<uint16_t> codes(count);
      for (int64_t i = 0; i < count; ++i) {
        codes[i] = numerics::bf16_from_f32(static_cast<const float*>(stage.data)[i]);
      }
      keep(stage.name, codes.data(), 2 * count);
      return;
    }
    const int64_t width = stage.type == StageType::kE4M3 ? 1 : stage.type == StageType::kI64 ? 8 : 4;
    keep(stage.name, stage.data, width * count);
  }
  std::map<std::string, std::vector<uint8_t>> all;

 private:
  void keep(const char* name, const void* data, int64_t bytes) {
    all[name].assign(static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + bytes);
  }
};

struct Prepared {
  std::vector<prepare::PreparedW4> matrices;
  std::vector<kernels::W4Matrix> views;
};

Prepared prepare_experts(const std::vector<uint32_t>& packed, const std::vector<uint16_t>& scales, int64_t experts,
                         int64_t n, int64_t k) {
  Prepared prepared;
  for (int64_t e = 0; e < experts; ++e) {
    prepare::CanonicalW4 matrix;
    matrix.n = n;
    matrix.k = k;
    matrix.group_size = 128;
    matrix.packed = packed.data() + e * n * k / 8;
    matrix.scales = scales.data() + e * n * k / 128;
    auto one = prepare::prepare_w4(matrix, kernels::Numerics::kVllm);
    EXPECT_TRUE(one.ok());
    prepared.matrices.push_back(std::move(*one));
  }
  for (const auto& matrix : prepared.matrices) prepared.views.push_back(matrix.view());
  return prepared;
}

TEST(LayerVllm, EqualsTheH100BitForBit) {
  const auto path = testing::golden_path("vllm_h100.safetensors");
  if (!path) GTEST_SKIP() << testing::kNoGolden;
  const auto file = formats::SafetensorsFile::open(*path);
  ASSERT_TRUE(file.ok()) << file.error().message;
  const int64_t experts = 4, hidden = 256, width = 256, tokens = 24, top_k = 2;
  const Prepared w13 = prepare_experts(values<uint32_t>(*file, "w13_packed"), values<uint16_t>(*file, "w13_scale"),
                                       experts, 2 * width, hidden);
  const Prepared w2 = prepare_experts(values<uint32_t>(*file, "w2_packed"), values<uint16_t>(*file, "w2_scale"),
                                      experts, hidden, width);
  MoeLayer layer;
  layer.rule.num_experts = experts;
  layer.rule.top_k = top_k;
  layer.experts = {hidden,
                   width,
                   {},
                   W4Linear{experts, 2 * width, hidden, 128, w13.views.data(), nullptr},
                   W4Linear{experts, hidden, width, 128, w2.views.data(), nullptr}};
  ASSERT_TRUE(check_layer(layer).ok());

  std::vector<float> x;
  for (const uint16_t code : values<uint16_t>(*file, "x")) x.push_back(numerics::bf16_to_f32(code));
  const auto ids = values<int32_t>(*file, "topk_ids");
  const auto weights = values<float>(*file, "topk_weights");

  ThreadPool pool(2);
  Arena scratch;
  const auto table = kernels::select_table("hopper");
  ASSERT_TRUE(table.ok()) << table.error().message;
  const Execution execution{*table, {&pool, &scratch}, kernels::Numerics::kVllm, kernels::Rounding::kBf16};
  std::vector<float> out(tokens * hidden);
  Bytes stages;
  const Status status =
      run_layer(layer, x.data(), tokens, {ids.data(), weights.data()}, execution, out.data(), &stages);
  ASSERT_TRUE(status.ok()) << status.error().message;
  for (const char* name : {"a1", "a1_scale", "expert_first_token_offset", "inv_permuted_idx", "permuted_idx",
                           "gemm1_out", "act", "a2", "a2_scale", "gemm2_out", "out"}) {
    const auto expected = values<uint8_t>(*file, name);
    ASSERT_EQ(stages.all[name].size(), expected.size()) << name;
    int64_t differing = 0;
    for (size_t i = 0; i < expected.size(); ++i) differing += stages.all[name][i] != expected[i] ? 1 : 0;
    EXPECT_EQ(differing, 0) << name << ": differing bytes";
  }
}

}  // namespace
}  // namespace quadrille::moe
