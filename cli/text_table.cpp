// SPDX-License-Identifier: Apache-2.0
// Lays out a table in columns of code points (the wide characters of some scripts are not looked after).
#include "cli/text_table.h"

#include <algorithm>

#include "core/check.h"

namespace quadrille::cli {
namespace {

size_t code_points(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

}  // namespace

TextTable::TextTable(std::vector<std::string> headings) : headings_(std::move(headings)) {
  for (std::string& heading : headings_) {
    right_.push_back(!heading.empty() && heading[0] == '>');
    if (right_.back()) heading.erase(0, 1);
  }
}

void TextTable::add_row(std::vector<std::string> cells) {
  QD_CHECK(cells.size() == headings_.size(), "a row needs one cell a heading");
  rows_.push_back(std::move(cells));
}

std::string TextTable::text() const {
  std::vector<size_t> widths;
  for (size_t c = 0; c < headings_.size(); ++c) {
    size_t width = code_points(headings_[c]);
    for (const auto& row : rows_) width = std::max(width, code_points(row[c]));
    widths.push_back(width);
  }
  std::string result;
  const auto add = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < cells.size(); ++c) {
      const std::string pad(widths[c] - code_points(cells[c]), ' ');
      if (c > 0) line += "  ";
      line += right_[c] ? pad + cells[c] : cells[c] + pad;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    result += line + "\n";
  };
  add(headings_);
  std::vector<std::string> rule;
  for (const size_t width : widths) rule.emplace_back(width, '-');
  add(rule);
  for (const auto& row : rows_) add(row);
  return result;
}

}  // namespace quadrille::cli
