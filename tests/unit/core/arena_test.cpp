// SPDX-License-Identifier: Apache-2.0
#include "core/arena.h"

#include <gtest/gtest.h>

#include <cstring>

namespace quadrille {
namespace {

TEST(Arena, PiecesAreAlignedDisjointAndSurviveGrowth) {
  Arena arena;
  std::vector<std::pair<char*, int>> pieces;
  for (int i = 1; i < 200; ++i) {
    char* p = arena.take<char>(i * 7);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % Arena::kAlignment, 0u);
    std::memset(p, i, i * 7);
    pieces.emplace_back(p, i);
  }
  for (auto [p, i] : pieces)
    for (int j = 0; j < i * 7; ++j) ASSERT_EQ(p[j], static_cast<char>(i));
}

TEST(Arena, TheSecondStepOfTheSameSizeTakesOneBlock) {
  Arena arena;
  for (int i = 0; i < 10; ++i) arena.take<float>(1000);
  arena.reset();
  const size_t capacity = arena.capacity_bytes();
  EXPECT_GE(capacity, 40000u);
  char* begin = arena.take<char>(1);
  for (int i = 0; i < 9; ++i) {
    char* p = reinterpret_cast<char*>(arena.take<float>(1000));
    EXPECT_GE(p, begin);
    EXPECT_LT(p, begin + capacity);
  }
  arena.reset();
  EXPECT_EQ(arena.capacity_bytes(), capacity);
}

}  // namespace
}  // namespace quadrille
