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
constexpr AttentionLaunch kCoded{0, true, false, true};

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

// However many tokens share the multiprocessors, so that blocks are spread over 1 to 8 CTAs of one or of several
// clusters: the bits of the token alone, and the codes of its row.
TEST_F(AttentionTest, EverySpreadAndItsCodes) {
  const std::vector<int32_t> places = {2099, 0, -1, 63, 64, 130, 191, 255, 256, 511, 1023, 1024, 1500, 2047, 2048, 700};
  const AttentionShape shapes[] = {{32, 8, 0, 128, 0}, {16, 1, 0, 128, 0},   {8, 4, 0, 64, 0},     {20, 20, 0, 32, 0},
                                   {6, 3, 1, 192, 0},  {4, 2, 0, 256, 1000}, {5, 4, 3, 80, 0},     {3, 1, 0, 8, 0},
                                   {8, 8, 0, 128, 1},  {12, 6, 0, 96, 700},  {32, 16, 0, 128, 64}, {1, 1, 0, 24, 0}};
  for (const AttentionShape& shape : shapes) {
    SCOPED_TRACE(fmt::format("{} heads, {} a KV head, phase {}, {} dimensions, window {}", shape.num_heads,
                             shape.heads_per_kv, shape.head_phase, shape.head_dim, shape.window));
    AttentionCase attention(shape, {2100}, stream());
    std::vector<std::vector<uint16_t>> rows;
    for (const int32_t place : places) {
      const std::vector<QueryToken> token = {{0, place}};
      rows.push_back(attention.run(token, kAlone));
      ASSERT_EQ(place < 0 ? "" : attention.difference(token, rows.back(), 0), "");
    }
    for (const size_t count : {1, 2, 3, 5, 9, 16, 17, 33, 34, 66, 67, 131, 140}) {
      std::vector<QueryToken> tokens;
      std::vector<uint16_t> expected;
      for (size_t t = 0; t < count; ++t) {
        tokens.push_back({0, places[t % places.size()]});
        expected.insert(expected.end(), rows[t % places.size()].begin(), rows[t % places.size()].end());
      }
      for (const bool counts : {true, false}) {
        const AttentionLaunch launch{0, true, false, counts, counts};
        ASSERT_EQ(bit_differences(attention.run(tokens, launch), expected, shape.row()), "")
            << count << " tokens, counters " << counts;
      }
    }
    ASSERT_EQ(attention.harmed(), "");
  }
}

// Counters are zero again behind every launch: a graph gives the same bits each time.
TEST_F(AttentionTest, AGraphMayBeReplayed) {
  const AttentionShape shape{32, 8, 0, 128, 0};
  AttentionCase attention(shape, {3000, 400}, stream());
  const std::vector<QueryToken> tokens = {{0, 2999}, {1, 399}, {0, -1}};
  const auto expected = attention.run(tokens, kAlone);
  AttentionCase::Prepared prepared;
  attention.prepare(tokens, kCoded, &prepared);
  const auto graph = must(device::Graph::capture(stream(), [&]() -> Status {
    attention.launch(prepared);
    return {};
  }));
  for (int i = 0; i < 100; ++i) {
    must(device::fill(prepared.p.out, 0xff, expected.size() * sizeof(uint16_t), stream()));
    must(graph.launch(stream()));
    ASSERT_EQ(bit_differences(attention.result(prepared), expected, shape.row()), "") << "replay " << i;
  }
}

// Launches behind each other overlap; two streams with their own memory do not meet.
TEST_F(AttentionTest, TwoStreamsAtOnce) {
  const AttentionShape shape{32, 8, 0, 128, 0};
  const auto other = must(device::OwnedStream::create());
  AttentionCase first(shape, {1500, 1025}, stream()), second(shape, {1500, 1025}, other.get());
  const std::vector<QueryToken> tokens = {{0, 1499}, {1, 1024}};
  const auto expected = first.run(tokens, kAlone);
  AttentionCase::Prepared own, others;
  first.prepare(tokens, kCoded, &own);
  second.prepare(tokens, kCoded, &others);
  for (int i = 0; i < 200; ++i) {
    first.launch(own);
    second.launch(others);
  }
  EXPECT_EQ(bit_differences(first.result(own), expected, shape.row()), "");
  EXPECT_EQ(bit_differences(second.result(others), expected, shape.row()), "");
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
    const float chained = attention.time_in_graph(tokens, kCoded, 3);
    std::printf("  with codes, in a chain: 64 x 1024 %.1f us (%.2f TB/s)", chained * 1e3, bytes / chained * 1e-9);
    for (const size_t count : {1, 2, 4, 8, 16, 24, 32, 48}) {
      const std::vector<QueryToken> some(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count));
      std::printf(", %zu: %.1f us", count, attention.time_in_graph(some, kCoded, 3) * 1e3);
    }
    std::printf("\n");
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
