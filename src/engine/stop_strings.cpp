// SPDX-License-Identifier: Apache-2.0
// Stop strings in a stream of text; see stop_strings.h.
#include "engine/stop_strings.h"

#include <algorithm>

namespace quadrille::engine {
namespace {

// Length of the longest suffix of `text` that is a proper prefix of `stop`.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

size_t incomplete_utf8_tail(std::string_view text) {
  for (size_t length = 1; length <= std::min<size_t>(3, text.size()); ++length) {
    const auto byte = static_cast<unsigned char>(text[text.size() - length]);
    if ((byte & 0xC0) == 0x80) continue;  // inside a character: look further back for its first byte
    const size_t needed = byte >= 0xF0 && byte <= 0xF4 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC2 ? 2 : 1;
    return byte <= 0xF4 && needed > length ? length : 0;
  }
  return 0;
}

StopStrings::Piece StopStrings::push(std::string_view piece) {
  Piece result;
  result.stopped = stopped_;
  if (stopped_) return result;
  for (const char byte : piece) {
    held_ += byte;
    size_t found = 0;
    for (const std::string& stop : stops_) {
      if (held_.ends_with(stop)) found = std::max(found, stop.size());
    }
    if (found == 0) continue;
    result.text = held_.substr(0, held_.size() - found);
    result.stopped = stopped_ = true;
    held_.clear();
    return result;
  }
  const size_t certain = held_.size() - length_to_hold();
  result.text = held_.substr(0, certain);
  held_.erase(0, certain);
  return result;
}

StopStrings::Piece StopStrings::finish() {
  Piece result;
  result.stopped = stopped_;
  const size_t tail = incomplete_utf8_tail(held_);
  if (tail > 0) held_.replace(held_.size() - tail, tail, "\xEF\xBF\xBD");
  result.text = std::move(held_);
  held_.clear();
  return result;
}

size_t StopStrings::length_to_hold() const {
  size_t hold = incomplete_utf8_tail(held_);
  for (const std::string& stop : stops_) hold = std::max(hold, overlap(held_, stop));
  return hold;
}

}  // namespace quadrille::engine
