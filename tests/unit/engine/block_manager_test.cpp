// SPDX-License-Identifier: Apache-2.0
// Pages: references, reuse by history, eviction of what was released longest ago.
#include "engine/block_manager.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "core/check.h"

namespace quadrille::engine {
namespace {

std::vector<int32_t> page_of(int32_t id) {
  return std::vector<int32_t>(kPage, id);
}

std::vector<int32_t> pages_of(std::initializer_list<int32_t> ids) {
  std::vector<int32_t> tokens;
  for (const int32_t id : ids) tokens.insert(tokens.end(), kPage, id);
  return tokens;
}

TEST(BlockManager, HandsOutEveryPageOnceAndTakesItBack) {
  BlockManager blocks(5, false);
  std::set<int32_t> taken;
  for (int i = 0; i < 5; ++i) taken.insert(blocks.allocate().value());
  EXPECT_EQ(taken, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_FALSE(blocks.allocate().has_value());
  EXPECT_EQ(blocks.available(), 0);
  blocks.release(3);
  EXPECT_EQ(blocks.allocate(), 3);
  for (const int32_t page : taken) blocks.release(page);
  EXPECT_EQ(blocks.available(), 5);
  EXPECT_THROW(blocks.release(0), CheckFailure);
}

TEST(BlockManager, PagesForPositions) {
  EXPECT_EQ(pages_for(0), 0);
  EXPECT_EQ(pages_for(1), 1);
  EXPECT_EQ(pages_for(64), 1);
  EXPECT_EQ(pages_for(65), 2);
}

TEST(BlockManager, MatchesTheLongestKnownBeginning) {
  BlockManager blocks(8, true);
  Chain chain = kChainRoot;
  std::vector<int32_t> own;
  for (const int32_t id : {1, 2, 3}) {
    own.push_back(blocks.allocate().value());
    chain = blocks.publish(own.back(), chain, page_of(id));
  }
  EXPECT_EQ(blocks.match(pages_of({1, 2, 3, 4}), 9).pages, own);
  EXPECT_EQ(blocks.match(pages_of({1, 2, 3}), 9).chain, chain);
  EXPECT_EQ(blocks.match(pages_of({1, 2, 3}), 2).pages, (std::vector<int32_t>{own[0], own[1]}));
  EXPECT_EQ(blocks.match(pages_of({1, 9, 3}), 9).pages, (std::vector<int32_t>{own[0]}));
  EXPECT_TRUE(blocks.match(pages_of({2, 3}), 9).pages.empty()) << "the same tokens after another history";
  auto almost = pages_of({1, 2});
  almost[127] = 7;
  EXPECT_EQ(blocks.match(almost, 9).pages.size(), 1U);
  almost.resize(127);
  EXPECT_EQ(blocks.match(almost, 9).pages.size(), 1U) << "a page that is not full has no name";
}

TEST(BlockManager, SharedPagesStayUntilTheLastOwnerLeaves) {
  BlockManager blocks(2, true);
  const int32_t page = blocks.allocate().value();
  (void)blocks.publish(page, kChainRoot, page_of(1));
  blocks.retain(page);
  blocks.release(page);
  EXPECT_EQ(blocks.references(page), 1);
  EXPECT_EQ(blocks.available(), 1);
  blocks.release(page);
  EXPECT_EQ(blocks.available(), 2);
  EXPECT_EQ(blocks.match(page_of(1), 1).pages, (std::vector<int32_t>{page})) << "cached without an owner";
  blocks.retain(page);
  EXPECT_EQ(blocks.available(), 1);
  EXPECT_NE(blocks.allocate().value(), page);
  EXPECT_FALSE(blocks.allocate().has_value()) << "an owned page is never evicted";
}

TEST(BlockManager, EvictsWhatWasReleasedLongestAgo) {
  BlockManager blocks(3, true);
  std::vector<int32_t> pages;
  for (const int32_t id : {1, 2, 3}) {
    pages.push_back(blocks.allocate().value());
    (void)blocks.publish(pages.back(), kChainRoot, page_of(id));
  }
  for (const size_t i : {1U, 0U, 2U}) blocks.release(pages[i]);
  blocks.retain(pages[1]);  // used again: now the youngest
  blocks.release(pages[1]);
  EXPECT_EQ(blocks.cached(), 3);
  EXPECT_EQ(blocks.allocate(), pages[0]);
  EXPECT_TRUE(blocks.match(page_of(1), 1).pages.empty());
  EXPECT_EQ(blocks.allocate(), pages[2]);
  EXPECT_EQ(blocks.match(page_of(2), 1).pages.size(), 1U);
  EXPECT_EQ(blocks.allocate(), pages[1]);
  EXPECT_EQ(blocks.cached(), 0);
}

TEST(BlockManager, BlankPagesGoBeforeCachedOnes) {
  BlockManager blocks(2, true);
  const int32_t cached = blocks.allocate().value();
  (void)blocks.publish(cached, kChainRoot, page_of(1));
  blocks.release(cached);
  EXPECT_NE(blocks.allocate().value(), cached);
}

TEST(BlockManager, TheFirstOfTwoEqualPagesIsTheCachedOne) {
  BlockManager blocks(3, true);
  const int32_t first = blocks.allocate().value(), second = blocks.allocate().value();
  const Chain chain = blocks.publish(first, kChainRoot, page_of(1));
  EXPECT_EQ(blocks.publish(second, kChainRoot, page_of(1)), chain);
  EXPECT_EQ(blocks.match(page_of(1), 1).pages, (std::vector<int32_t>{first}));
  blocks.release(second);
  EXPECT_EQ(blocks.cached(), 1);
  EXPECT_EQ(blocks.allocate().value(), second) << "the copy is blank again";
}

// A page whose beginning was evicted is not found under a beginning that was computed anew with other neighbours.
TEST(BlockManager, AnEvictedBeginningTakesItsFollowersOut) {
  BlockManager blocks(4, true);
  const int32_t a = blocks.allocate().value(), b = blocks.allocate().value();
  const Chain after_a = blocks.publish(a, kChainRoot, page_of(1));
  (void)blocks.publish(b, after_a, page_of(2));
  blocks.release(a);  // the wrong order on purpose: the beginning is evicted first
  blocks.release(b);
  for (int i = 0; i < 3; ++i) (void)blocks.allocate().value();
  EXPECT_TRUE(blocks.match(pages_of({1, 2}), 2).pages.empty());
}

// Random use against a plain model: who owns what, and which histories must be found.
TEST(BlockManager, RandomUseKeepsItsCounts) {
  std::mt19937_64 rng(5);
  BlockManager blocks(12, true);
  std::map<int32_t, int64_t> owned;
  std::vector<int32_t> handles;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t what = rng() % 3;
    if (what == 0) {
      const auto page = blocks.allocate();
      ASSERT_EQ(page.has_value(), owned.size() < 12);
      if (!page) continue;
      ASSERT_EQ(owned.count(*page), 0U) << "an owned page was handed out";
      owned[*page] = 1;
      handles.push_back(*page);
      if (rng() % 2 == 0) (void)blocks.publish(*page, kChainRoot, page_of(static_cast<int32_t>(rng() % 9)));
    } else if (what == 1) {
      const auto match = blocks.match(page_of(static_cast<int32_t>(rng() % 9)), 1);
      for (const int32_t page : match.pages) {
        blocks.retain(page);
        owned[page] += 1;
        handles.push_back(page);
      }
    } else if (!handles.empty()) {
      const size_t at = rng() % handles.size();
      blocks.release(handles[at]);
      if (--owned[handles[at]] == 0) owned.erase(handles[at]);
      handles.erase(handles.begin() + static_cast<std::ptrdiff_t>(at));
    }
    ASSERT_EQ(blocks.available(), 12 - static_cast<int64_t>(owned.size()));
  }
}

}  // namespace
}  // namespace quadrille::engine
