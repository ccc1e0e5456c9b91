// SPDX-License-Identifier: Apache-2.0
// Paged attention: within its error bound of the definition in double, and the same bits for a token however it is
// launched: in a tile of any length, alone, with its blocks spread over CTAs, whatever else is in the step.
#include <gtest/gtest.h>

#include <cstdio>
#include <optional>

#include "device/attention_case.h"
#include "device/compare_bits.h"

namespace quadrille {
namespace {

using testing::AttentionCase;
using testing::AttentionLaunch;
using testing::AttentionShape;
using testing::bit_differences;
using testing::must;
using testing::QueryToken;

constexpr AttentionLaunch kAlone{0, false, false};
constexpr AttentionLaunch kSpread{0, true, false};
constexpr AttentionLaunch kPlanned{0, true, true};

class AttentionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
  }
  device::Stream stream() const { return owned_->get(); }
  std::optional<device::OwnedStream> owned_;
};

std::vector<QueryToken> positions_of(int32_t sequence, int32_t begin, int32_t end) {
  std::vector<QueryToken> tokens;
  for (int32_t position = begin; position < end; ++position) tokens.push_back({sequence, position});
  return tokens;
}

const AttentionShape kShapes[] = {
    {4, 2, 0, 64, 0},     // plain
    {8, 8, 0, 128, 0},    // Qwen3-30B, one KV head
    {3, 3, 0, 96, 0},     // three query heads a KV head
    {16, 16, 0, 128, 0},  // a full tile of heads
    {20, 20, 0, 32, 0},   // more heads than a tile
    {2, 1, 0, 256, 0},    // no grouping, the widest head
    {6, 3, 1, 192, 0},    // a shard that begins inside of a KV head's query heads
    {5, 4, 3, 80, 0},     // the same, padded dimensions
    {4, 2, 0, 64, 70},    // sliding windows
    {8, 8, 0, 128, 1},   {4, 4, 0, 112, 129}, {2, 2, 0, 16, 64}, {3, 2, 1, 160, 100},
};

TEST_F(AttentionTest, IsNearTheDefinitionAndDoesNotDependOnTheLaunch) {
  for (const AttentionShape& shape : kShapes) {
    SCOPED_TRACE(fmt::format("{} heads, {} a KV head, phase {}, {} dimensions, window {}", shape.num_heads,
                             shape.heads_per_kv, shape.head_phase, shape.head_dim, shape.window));
    AttentionCase attention(shape, {300, 1, 65}, stream());
    const auto tokens = positions_of(0, 0, 300);
    const auto whole = attention.run(tokens, kPlanned);
    for (const int64_t t : {0, 1, 5, 63, 64, 100, 127, 128, 191, 255, 299}) {
      ASSERT_EQ(attention.difference(tokens, whole, t), "");
    }
    for (const int64_t tile : {1, 3, 4}) {
      ASSERT_EQ(bit_differences(attention.run(tokens, {tile, false, false}), whole, shape.row()), "") << tile;
    }
    ASSERT_EQ(bit_differences(attention.run(tokens, kAlone), whole, shape.row()), "") << "alone";
    for (const int32_t t : {0, 64, 170, 299}) {
      const auto row = whole.begin() + t * shape.row();
      const std::vector<uint16_t> expected(row, row + shape.row());
      ASSERT_EQ(bit_differences(attention.run({{0, t}}, kAlone), expected, shape.row()), "") << t;
      ASSERT_EQ(bit_differences(attention.run({{0, t}}, kSpread), expected, shape.row()), "") << "spread " << t;
    }
    ASSERT_EQ(attention.harmed(), "");
  }
}

// Decode, prefill and padding in one step; lengths on and beside page borders.
TEST_F(AttentionTest, RaggedStepsGiveEveryTokenItsOwnBits) {
  const AttentionShape shape{8, 4, 0, 128, 0};
  AttentionCase attention(shape, {130, 64, 1, 200, 63, 65}, stream());
  std::vector<QueryToken> tokens = {{1, 63}, {0, -1}, {4, 62}};
  for (const QueryToken& token : positions_of(3, 70, 180)) tokens.push_back(token);
  for (const QueryToken& token : positions_of(0, 128, 130)) tokens.push_back(token);
  for (const QueryToken& token : positions_of(5, 0, 65)) tokens.push_back(token);
  tokens.push_back({2, 0});
  tokens.push_back({0, -1});
  const auto step = attention.run(tokens, kPlanned);
  for (size_t t = 0; t < tokens.size(); ++t) {
    const auto row = step.begin() + static_cast<int64_t>(t) * shape.row();
    const std::vector<uint16_t> found(row, row + shape.row());
    std::vector<uint16_t> expected(found.size(), 0);
    if (tokens[t].position >= 0) {
      expected = attention.run({tokens[t]}, t % 2 == 0 ? kAlone : kSpread);
      ASSERT_EQ(attention.difference(tokens, step, static_cast<int64_t>(t)), "");
    }
    ASSERT_EQ(bit_differences(found, expected, shape.row()), "") << "token " << t;
  }
  EXPECT_TRUE(attention.run({}, kAlone).empty());
}

TEST_F(AttentionTest, LongContext) {
  const AttentionShape shape{8, 8, 0, 128, 0};
  AttentionCase attention(shape, {32768}, stream());
  const std::vector<QueryToken> last = {{0, 32767}};
  const auto spread = attention.run(last, kSpread);
  ASSERT_EQ(attention.difference(last, spread, 0), "");
  ASSERT_EQ(bit_differences(attention.run(last, kAlone), spread, shape.row()), "") << "one CTA";
  const auto chunk = positions_of(0, 32700, 32768);
  const auto tiles = attention.run(chunk, {16, false, false});
  const std::vector<uint16_t> row(tiles.end() - shape.row(), tiles.end());
  ASSERT_EQ(bit_differences(row, spread, shape.row()), "") << "in a tile";
}

// The query heads of Qwen3-30B-A3B at a layer: 32 over 4 KV heads of 128 dimensions.
TEST_F(AttentionTest, Speed) {
  const AttentionShape shape{32, 8, 0, 128, 0};
  {
    AttentionCase attention(shape, std::vector<int64_t>(64, 1024), stream());
    std::vector<QueryToken> tokens;
    for (int32_t s = 0; s < 64; ++s) tokens.push_back({s, 1023});
    const double bytes = 64.0 * 1024 * 4 * 128 * 2 * 2;
    const float many = attention.time(tokens, kSpread, 20);
    const float one = attention.time({{0, 1023}}, kSpread, 20);
    std::printf("attention, decode: 64 x 1024 %.1f us (%.2f TB/s of keys and values), 1 x 1024 %.1f us\n", many * 1e3,
                bytes / many * 1e-9, one * 1e3);
  }
  {
    AttentionCase attention(shape, {4096}, stream());
    const auto tokens = positions_of(0, 0, 4096);
    const float all = attention.time(tokens, kPlanned, 5);
    std::printf("attention, prefill of 4096: %.3f ms (%.0f TFLOP/s)\n", all,
                4.0 * 32 * 128 * 4096.0 * 4097 / 2 / all * 1e-9);
  }
}

}  // namespace
}  // namespace quadrille
