// SPDX-License-Identifier: Apache-2.0
// Paged attention of every CPU table against the scalar statement (the reference table `hopper`), bit for bit; pages
// that no query may see are full of NaN.
#include <array>
#include <limits>

#include "cpu_tables.h"
#include "kernels/ref/tables.h"
#include "layout/kv_page.h"
#include "numerics/bf16.h"

namespace quadrille::kernels::test {
namespace {

struct AttentionCase {
  KvType kv_type = KvType::kBf16;
  Rounding rounding = Rounding::kBf16;
  int64_t heads = 8, kv_heads = 2, head_dim = 32, window = 0;
  std::vector<int32_t> position;  // of each token; token t belongs to sequence t % 3
};

class AttentionProblem {
 public:
  AttentionProblem(const AttentionCase& setup, uint32_t seed) : setup_(setup), random_(seed) {
    constexpr int64_t kSequences = 3;
    int64_t blocks = 1;
    for (int32_t p : setup.position) blocks = std::max<int64_t>(blocks, p / 64 + 1);
    stride_ = blocks + 1;
    const int64_t pages = kSequences * stride_;
    for (int64_t i = 0; i < pages; ++i) pages_.push_back(static_cast<int32_t>(i * 7 % pages));
    const int64_t size = pages * layout::KvPage{setup.kv_heads, setup.head_dim}.size();
    keys_ = random_.normals(size);
    values_ = random_.normals(size);
    hide_the_future();
    for (int64_t i = 0; i < size; ++i) {
      keys16_.push_back(numerics::bf16_from_f32(keys_[static_cast<size_t>(i)]));
      values16_.push_back(numerics::bf16_from_f32(values_[static_cast<size_t>(i)]));
    }
    for (int64_t t = 0; t < tokens(); ++t) sequence_.push_back(static_cast<int32_t>(t % kSequences));
    q_stride_ = setup.heads * setup.head_dim + 7;
    q_ = random_.normals(tokens() * q_stride_);
  }

  int64_t tokens() const { return static_cast<int64_t>(setup_.position.size()); }
  Buffer<float>& q() { return q_; }

  Buffer<float> run(const KernelTable& table, const KernelContext& context) const {
    Buffer<float> out = poisoned(tokens() * setup_.heads * setup_.head_dim);
    Attention p;
    p.rounding = setup_.rounding;
    p.kv_type = setup_.kv_type;
    p.num_tokens = tokens();
    p.num_heads = setup_.heads;
    p.num_kv_heads = setup_.kv_heads;
    p.head_dim = setup_.head_dim;
    p.window = setup_.window;
    p.scale = 0.17f;
    p.q_stride = q_stride_;
    p.q = q_.data();
    p.position = setup_.position.data();
    p.sequence = sequence_.data();
    p.page_table = pages_.data();
    p.page_table_stride = stride_;
    const bool narrow = setup_.kv_type == KvType::kBf16;
    p.keys = narrow ? static_cast<const void*>(keys16_.data()) : keys_.data();
    p.values = narrow ? static_cast<const void*>(values16_.data()) : values_.data();
    p.out = out.data();
    table.attention(p, context);
    return out;
  }

 private:
  // NaN behind the last position that any query of the sequence sees.
  void hide_the_future() {
    const layout::KvPage map{setup_.kv_heads, setup_.head_dim};
    for (int64_t sequence = 0; sequence < 3; ++sequence) {
      int64_t last = -1;
      for (int64_t t = sequence; t < tokens(); t += 3) {
        last = std::max<int64_t>(last, setup_.position[static_cast<size_t>(t)]);
      }
      for (int64_t position = last + 1; position < stride_ * 64; ++position) {
        const int64_t page = pages_[static_cast<size_t>(sequence * stride_ + position / 64)] * map.size();
        for (int64_t i = 0; i < setup_.kv_heads * setup_.head_dim; ++i) {
          const int64_t head = i / setup_.head_dim, dim = i % setup_.head_dim;
          const float nan = std::numeric_limits<float>::quiet_NaN();
          keys_[static_cast<size_t>(page + map.key_offset(head, position % 64, dim))] = nan;
          values_[static_cast<size_t>(page + map.value_offset(head, position % 64, dim))] = nan;
        }
      }
    }
  }

  AttentionCase setup_;
  Random random_;
  int64_t stride_ = 0, q_stride_ = 0;
  std::vector<int32_t> pages_, sequence_;
  Buffer<float> keys_, values_, q_;
  Buffer<uint16_t> keys16_, values16_;
};

class AttentionOf : public CpuTable {
 protected:
  void expect_exact_bits(const AttentionProblem& problem) {
    const Buffer<float> expected = problem.run(ref::kHopperTable, KernelContext{&contexts_.pools[0], &contexts_.arena});
    contexts_.each(
        [&](const KernelContext& context) { EXPECT_TRUE(same_bits(expected, problem.run(table(), context))); });
  }
  Contexts contexts_;
};

constexpr std::array kTypes = {KvType::kBf16, KvType::kF32};

TEST_P(AttentionOf, HeadShapes) {
  for (const KvType type : kTypes) {
    for (const int64_t head_dim : {8, 20, 32, 36, 64, 72, 128}) {
      for (const int64_t heads_per_kv : {1, 2, 3, 8, 15}) {
        SCOPED_TRACE("head_dim " + std::to_string(head_dim) + " heads per kv " + std::to_string(heads_per_kv));
        const AttentionCase setup{type, Rounding::kF32, 2 * heads_per_kv, 2, head_dim, 0, {0, 5, 63, 64, 130}};
        expect_exact_bits(AttentionProblem(setup, 1));
      }
    }
  }
}

TEST_P(AttentionOf, EveryPositionOfAPrompt) {
  AttentionCase setup{KvType::kBf16, Rounding::kBf16, 4, 1, 32, 0, {}};
  for (int32_t p = 0; p < 201; ++p) setup.position.push_back(p);
  expect_exact_bits(AttentionProblem(setup, 2));
}

TEST_P(AttentionOf, SlidingWindows) {
  for (const int64_t window : {1, 2, 63, 64, 65, 100, 500}) {
    SCOPED_TRACE(window);
    AttentionCase setup{KvType::kF32, Rounding::kBf16, 8, 2, 32, window, {}};
    for (int32_t p = 0; p < 260; p += 13) setup.position.push_back(p);
    expect_exact_bits(AttentionProblem(setup, 3));
  }
}

TEST_P(AttentionOf, StrangeQueries) {
  AttentionProblem problem({KvType::kF32, Rounding::kF32, 4, 2, 32, 0, {70, 71, 72, 73, 74}}, 4);
  const auto stride = static_cast<size_t>(4 * 32 + 7);
  problem.q()[3] = std::numeric_limits<float>::quiet_NaN();
  problem.q()[stride + 40] = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < 128; ++i) problem.q()[2 * stride + i] = 0.0f;
  for (size_t i = 0; i < 128; ++i) problem.q()[3 * stride + i] *= 1e4f;  // one key takes all
  expect_exact_bits(problem);
}

TEST_P(AttentionOf, NoTokens) {
  expect_exact_bits(AttentionProblem({KvType::kBf16, Rounding::kBf16, 4, 2, 32, 0, {}}, 5));
}

INSTANTIATE_TEST_SUITE_P(Tables, AttentionOf, every_cpu_table(), table_name);

}  // namespace
}  // namespace quadrille::kernels::test
