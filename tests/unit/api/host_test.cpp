// SPDX-License-Identifier: Apache-2.0
// The layers on a CPU through C: what they refuse, that their bits are those of moe/layer.h, and that handles go in any
// order. tests/python looks at the same functions from further away, with larger cases.
#include <gmock/gmock.h>

#include <cstring>
#include <random>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "kernels/api/registry.h"
#include "moe/layer.h"
#include "numerics/bf16.h"
#include "prepare/prepare_hopper.h"
#include "quadrille/c_host.h"

namespace {

using namespace quadrille;
using ::testing::HasSubstr;

constexpr int64_t kExperts = 3, kHidden = 64, kWidth = 32, kGroup = 32, kTokens = 5, kTopK = 2;

struct Matrix {
  int64_t num_parts, part_n, k;
  std::vector<uint32_t> words;   // [kExperts, num_parts * part_n, k / 8]
  std::vector<uint16_t> scales;  // [kExperts, num_parts * part_n, k / kGroup]
  std::vector<const void*> codes_of, scales_of;

  Matrix(int64_t parts, int64_t rows, int64_t columns, uint32_t seed) : num_parts(parts), part_n(rows), k(columns) {
    std::mt19937 random(seed);
    const int64_t all = kExperts * parts * rows;
    for (int64_t i = 0; i < all * k / 8; ++i) words.push_back(static_cast<uint32_t>(random()));
    for (int64_t i = 0; i < all * k / kGroup; ++i) {
      scales.push_back(numerics::bf16_from_f32(0.01f + 1e-5f * static_cast<float>(random() % 1000)));
    }
    for (int64_t i = 0; i < kExperts * parts; ++i) {
      codes_of.push_back(words.data() + i * rows * k / 8);
      scales_of.push_back(scales.data() + i * rows * k / kGroup);
    }
  }
  qd_weights_desc desc() const {
    qd_weights_desc desc;
    qd_weights_desc_init(&desc);
    desc.num_experts = kExperts;
    desc.num_parts = num_parts;
    desc.part_n = part_n;
    desc.k = k;
    desc.group_size = kGroup;
    desc.codes = codes_of.data();
    desc.scales = scales_of.data();
    desc.on_host = 1;
    return desc;
  }
  // Gate and up of one expert as prepare/ takes them.
  std::vector<prepare::CanonicalW4> parts(int64_t expert) const {
    std::vector<prepare::CanonicalW4> parts;
    for (int64_t p = 0; p < num_parts; ++p) {
      const auto at = static_cast<size_t>(expert * num_parts + p);
      prepare::CanonicalW4 matrix{part_n, k, kGroup};
      matrix.packed = codes_of[at];
      matrix.scales = scales_of[at];
      parts.push_back(matrix);
    }
    return parts;
  }
};

struct HostApi : ::testing::Test {
  qd_host* host = nullptr;
  qd_error error{};
  Matrix gate_up{2, kWidth, kHidden, 1}, down{1, kHidden, kWidth, 2};
  std::vector<uint16_t> x;
  std::vector<float> logits;

  HostApi() {
    EXPECT_EQ(qd_host_create(2, "generic", &host, &error), QD_OK) << error.message;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kTokens * kHidden; ++i) x.push_back(numerics::bf16_from_f32(normal(random)));
    for (int64_t i = 0; i < kTokens * kExperts; ++i) logits.push_back(normal(random));
  }
  ~HostApi() override { qd_host_destroy(host); }

  qd_host_weights* prepare(const Matrix& matrix) {
    const qd_weights_desc desc = matrix.desc();
    qd_host_weights* weights = nullptr;
    EXPECT_EQ(qd_host_weights_prepare(host, &desc, 0, &weights, &error), QD_OK) << error.message;
    return weights;
  }
  qd_host_layer* layer(const qd_host_weights* first, const qd_host_weights* second) {
    qd_host_layer_desc desc;
    qd_host_layer_desc_init(&desc);
    desc.num_experts = kExperts;
    desc.top_k = kTopK;
    desc.experts.gate_up = first;
    desc.experts.down = second;
    qd_host_layer* made = nullptr;
    EXPECT_EQ(qd_host_layer_create(host, &desc, &made, &error), QD_OK) << error.message;
    return made;
  }
  std::vector<uint16_t> expected();
};

// The same through moe/layer.h.
std::vector<uint16_t> HostApi::expected() {
  ThreadPool pool(1);
  Arena scratch;
  moe::Execution execution;
  execution.table = kernels::select_table("generic").value();
  execution.kernels = {&pool, &scratch};
  std::vector<prepare::PreparedW4> prepared;
  std::vector<kernels::W4Matrix> views;
  for (const Matrix* matrix : {&gate_up, &down}) {
    for (int64_t e = 0; e < kExperts; ++e) {
      prepared.push_back(prepare::prepare_w4(matrix->parts(e), kernels::Numerics::kExact, nullptr).value());
    }
  }
  for (const auto& matrix : prepared) views.push_back(matrix.view());
  moe::MoeLayer layer;
  layer.rule.num_experts = kExperts;
  layer.rule.top_k = kTopK;
  layer.experts.hidden = kHidden;
  layer.experts.width = kWidth;
  layer.experts.gate_up = moe::W4Linear{kExperts, 2 * kWidth, kHidden, kGroup, views.data(), nullptr};
  layer.experts.down = moe::W4Linear{kExperts, kHidden, kWidth, kGroup, views.data() + kExperts, nullptr};
  std::vector<int32_t> ids(kTokens * kTopK);
  std::vector<float> weights(kTokens * kTopK), wide(kTokens * kHidden), out(kTokens * kHidden);
  for (size_t i = 0; i < wide.size(); ++i) wide[i] = numerics::bf16_to_f32(x[i]);
  moe::route_tokens(layer.rule, nullptr, logits.data(), kTokens, ids.data(), weights.data(), &pool);
  EXPECT_TRUE(moe::run_layer(layer, wide.data(), kTokens, {ids.data(), weights.data()}, execution, out.data()));
  std::vector<uint16_t> codes;
  for (const float value : out) codes.push_back(numerics::bf16_from_f32(value));
  return codes;
}

TEST_F(HostApi, HasTheBitsOfTheLayerAndHandlesGoInAnyOrder) {
  const std::vector<uint16_t> wanted = expected();
  qd_host_weights* first = prepare(gate_up);
  qd_host_weights* second = prepare(down);
  EXPECT_GT(qd_host_weights_bytes(first), 0u);
  qd_host_layer* made = layer(first, second);
  qd_host_weights_destroy(first);
  qd_host_destroy(host);
  host = nullptr;
  qd_host_weights_destroy(second);
  qd_host_batch batch;
  qd_host_batch_init(&batch);
  batch.num_tokens = kTokens;
  batch.type = QD_TYPE_BF16;
  batch.x = x.data();
  batch.router_logits = logits.data();
  std::vector<uint16_t> out(x.size());
  batch.out = out.data();
  ASSERT_EQ(qd_host_layer_run(made, &batch, &error), QD_OK) << error.message;
  EXPECT_EQ(out, wanted);
  batch.out = x.data();
  ASSERT_EQ(qd_host_layer_run(made, &batch, &error), QD_OK) << error.message;
  EXPECT_EQ(x, wanted) << "in place";
  qd_host_layer_destroy(made);
}

TEST_F(HostApi, HopperBytesAreThoseOfThePreparation) {
  const qd_weights_desc desc = gate_up.desc();
  uint64_t bytes = 0;
  ASSERT_EQ(qd_host_prepared_bytes(&desc, QD_LAYOUT_HOPPER, &bytes, &error), QD_OK) << error.message;
  std::vector<uint8_t> memory(bytes);
  ASSERT_EQ(qd_host_prepare(host, &desc, QD_LAYOUT_HOPPER, memory.data(), bytes, &error), QD_OK) << error.message;
  const uint64_t each = (bytes - 128) / kExperts;
  for (int64_t e = 0; e < kExperts; ++e) {
    const auto made = prepare::prepare_hopper_w4(gate_up.parts(e), kernels::Numerics::kExact).value();
    EXPECT_EQ(
        std::memcmp(memory.data() + 128 + static_cast<uint64_t>(e) * each, made.weights.data(), made.weights.size()), 0)
        << "expert " << e;
  }
  std::vector<uint32_t> codes(gate_up.words.size());
  std::vector<uint16_t> scales(gate_up.scales.size());
  ASSERT_EQ(qd_host_unprepare(memory.data(), bytes, codes.data(), scales.data(), &error), QD_OK) << error.message;
  EXPECT_EQ(codes, gate_up.words);
  EXPECT_EQ(scales, gate_up.scales);
}

TEST_F(HostApi, RefusesWithWords) {
  qd_host* other = nullptr;
  EXPECT_EQ(qd_host_create(-1, nullptr, &other, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("expected 0 (one for each usable core) or more, found -1"));
  EXPECT_EQ(qd_host_create(1, "nothing", &other, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(other, nullptr);
  EXPECT_EQ(qd_host_create(1, nullptr, nullptr, nullptr), QD_INVALID_ARGUMENT);
  qd_host_destroy(nullptr);
  qd_host_layer_destroy(nullptr);
  qd_host_weights_destroy(nullptr);

  qd_weights_desc desc = gate_up.desc();
  qd_host_weights* weights = nullptr;
  desc.on_host = 0;
  EXPECT_EQ(qd_host_weights_prepare(host, &desc, 0, &weights, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("on_host"));
  desc = gate_up.desc();
  desc.struct_size -= 1;
  EXPECT_EQ(qd_host_weights_prepare(host, &desc, 0, &weights, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("qd_weights_desc_init"));
  gate_up.scales[7] = 0x7f80;
  desc = gate_up.desc();
  EXPECT_EQ(qd_host_weights_prepare(host, &desc, 0, &weights, &error), QD_INVALID_DATA);
  EXPECT_THAT(error.message, HasSubstr("expert 0"));
  EXPECT_EQ(weights, nullptr);

  qd_host_layer_desc layer_desc;
  qd_host_layer_desc_init(&layer_desc);
  qd_host_layer* made = nullptr;
  EXPECT_EQ(qd_host_layer_create(host, &layer_desc, &made, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("experts: gate_up: a null pointer"));
}

TEST_F(HostApi, ScalesOfAnyStrides) {
  const std::vector<uint16_t> scales = {0x3f80, 0x4000, 0x3f00, 0xbf80, 0x3e80, 0x4080};  // [2, 3]
  std::vector<uint8_t> group(6), strided(6);
  qd_tensor tensor{scales.data(), QD_TYPE_BF16, 2, {2, 3}, {3, 1}};
  ASSERT_EQ(qd_scales_split(&tensor, nullptr, nullptr, nullptr, group.data(), &error), QD_OK) << error.message;
  const std::vector<uint16_t> spread = {0x3f80, 0xbf80, 0x4000, 0x3e80, 0x3f00, 0x4080};  // the columns
  tensor = {spread.data(), QD_TYPE_BF16, 2, {2, 3}, {1, 2}};
  ASSERT_EQ(qd_scales_split(&tensor, nullptr, nullptr, nullptr, strided.data(), &error), QD_OK) << error.message;
  EXPECT_EQ(group, strided);
  tensor.rank = 5;
  EXPECT_EQ(qd_scales_split(&tensor, nullptr, nullptr, nullptr, strided.data(), &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("expected a tensor of rank 1 to 4, found rank 5"));
}

}  // namespace
