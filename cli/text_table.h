// SPDX-License-Identifier: Apache-2.0
// A table for people: columns padded to their widest cell, numbers to the right. Used by every report.
#pragma once

#include <string>
#include <vector>

namespace quadrille::cli {

class TextTable {
 public:
  // A heading that begins with '>' stands for a right-aligned column (the mark is not shown).
  explicit TextTable(std::vector<std::string> headings);
  // As many cells as headings (QD_CHECK).
  void add_row(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  // Heading, rule, rows; each line ends in "\n", none in a space.
  std::string text() const;

 private:
  std::vector<std::string> headings_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace quadrille::cli
