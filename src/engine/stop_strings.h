// SPDX-License-Identifier: Apache-2.0
// Finds stop strings in text that arrives in pieces. Holds back what could be the beginning of one, and what is the
// beginning of a UTF-8 character, so that nothing given out is ever taken back. Used by sequence.cpp.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quadrille::engine {

class StopStrings {
 public:
  StopStrings() = default;
  explicit StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  struct Piece {
    std::string text;      // certain now
    bool stopped = false;  // a stop string is complete: `text` ends before it, and nothing follows
  };
  // The first stop string to be complete counts, of two complete at the same byte the longer one: where the text is cut
  // into pieces changes nothing.
  Piece push(std::string_view piece);
  // The text is over: what was held back is certain. A character cut short becomes U+FFFD.
  Piece finish();

 private:
  size_t length_to_hold() const;

  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

// Bytes at the end of `text` that begin a UTF-8 character and lack its rest: 0 to 3.
size_t incomplete_utf8_tail(std::string_view text);

}  // namespace quadrille::engine
