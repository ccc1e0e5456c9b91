// SPDX-License-Identifier: Apache-2.0
// Stop strings: however the text is cut into pieces, the same text comes out, and never a part of a stop string.
#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "expected_answer.h"

namespace quadrille::engine {
namespace {

using testing::cut_at_stop;

TEST(StopStrings, HoldsBackWhatMayBeABeginning) {
  StopStrings stops({"END", "\n\n"});
  EXPECT_EQ(stops.push("abcE").text, "abc");
  EXPECT_EQ(stops.push("N").text, "");
  EXPECT_EQ(stops.push("x\n").text, "ENx");
  EXPECT_EQ(stops.push("E").text, "\n");
  const auto last = stops.push("ND tail");
  EXPECT_TRUE(last.stopped);
  EXPECT_EQ(last.text, "");
  EXPECT_TRUE(stops.push("more").stopped);
  EXPECT_EQ(stops.push("more").text, "");
  EXPECT_EQ(stops.finish().text, "");
}

TEST(StopStrings, OverlapsAreFound) {
  StopStrings repeated({"aab"});
  EXPECT_EQ(repeated.push("aaa").text, "a");
  const auto piece = repeated.push("b");
  EXPECT_TRUE(piece.stopped);
  EXPECT_EQ(piece.text, "");
}

TEST(StopStrings, TheFirstToBeCompleteCountsAndOfTwoTheLonger) {
  StopStrings one({"abcd", "bc"});
  EXPECT_EQ(one.push("xabcd").text, "xa");
  StopStrings two({"bc", "abc"});
  EXPECT_EQ(two.push("xabc").text, "x");
}

TEST(StopStrings, TheEndGivesBackWhatWasHeld) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.push("xEN").text, "x");
  const auto piece = stops.finish();
  EXPECT_EQ(piece.text, "EN");
  EXPECT_FALSE(piece.stopped);
}

TEST(StopStrings, Utf8TailsAreHeld) {
  EXPECT_EQ(incomplete_utf8_tail(""), 0U);
  EXPECT_EQ(incomplete_utf8_tail("a"), 0U);
  EXPECT_EQ(incomplete_utf8_tail("a\xC3"), 1U);
  EXPECT_EQ(incomplete_utf8_tail("\xC3\xA9"), 0U);
  EXPECT_EQ(incomplete_utf8_tail("\xE2\x82"), 2U);
  EXPECT_EQ(incomplete_utf8_tail("\xF0\x9F\x98"), 3U);
  EXPECT_EQ(incomplete_utf8_tail("\xF0\x9F\x98\x80"), 0U);
  // What can never become a character is not waited for.
  EXPECT_EQ(incomplete_utf8_tail("\xFF"), 0U);
  EXPECT_EQ(incomplete_utf8_tail("\xC0"), 0U);
  EXPECT_EQ(incomplete_utf8_tail("\x80\x80\x80\x80"), 0U);
  EXPECT_EQ(incomplete_utf8_tail("\xF8\x80"), 0U);
}

// Random texts, stops and cuts: the same result as one look at the whole text, and what came out before the end is
// always a beginning of it.
TEST(StopStrings, CutsChangeNothing) {
  std::mt19937_64 rng(4);
  const std::vector<std::string> letters = {"a", "b", "\u00E9", "\u20AC", "\U0001F600", "\U0001F601"};
  const auto random_text = [&](uint64_t length) {
    std::string text;
    for (uint64_t i = 0; i < length; ++i) text += letters[rng() % letters.size()];
    return text;
  };
  int64_t stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::string text = random_text(rng() % 40);
    std::vector<std::string> stop_list;
    for (uint64_t i = rng() % 4; i > 0; --i) stop_list.push_back(random_text(1 + rng() % 3));
    std::string expected = text;
    const bool expect_stop = cut_at_stop(expected, stop_list);
    StopStrings stops(stop_list);
    std::string got;
    bool stop = false;
    for (size_t at = 0; at < text.size() && !stop;) {
      const size_t length = std::min<size_t>(1 + rng() % 6, text.size() - at);
      const auto piece = stops.push(text.substr(at, length));
      got += piece.text;
      stop = piece.stopped;
      at += length;
      ASSERT_EQ(expected.compare(0, got.size(), got), 0) << "text was given out that is not in the answer";
      ASSERT_EQ(incomplete_utf8_tail(got), 0U);
    }
    got += stops.finish().text;
    ASSERT_EQ(got, expected);
    ASSERT_EQ(stop, expect_stop);
    stopped += stop ? 1 : 0;
  }
  EXPECT_GT(stopped, 3000);
}

}  // namespace
}  // namespace quadrille::engine
