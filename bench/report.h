// SPDX-License-Identifier: Apache-2.0
// Prints what was measured as a table for people and, where asked, as JSON lines; gathers the requirements and prints
// them at the end, each with its target, what was reached and a verdict.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "bench/verdict.h"

namespace quadrille::bench {

// One product or layer on one number of threads.
struct Line {
  std::string table;    // of kernels
  std::string product;  // "w4a8 exact w13 [1536, 2048] g128"
  std::string size;     // "rows 4", "64 tokens, 125 experts"
  int threads = 0;
  double seconds = 0;
  Work work;
  Limits limits;
  double fraction = 0;    // of the floor
  double times_base = 0;  // of the time of what it is compared with; 0: with nothing
};

class Report {
 public:
  // `json_file` empty: no JSON; it is replaced.
  explicit Report(const std::string& json_file);
  ~Report();
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  bool writes() const { return !wants_json_ || json_ != nullptr; }  // false: the file cannot be made
  void heading(const std::string& text);
  void line(const Line& line);
  void require(const Requirement& requirement);
  // Prints them all; returns how many are missed.
  int requirements();

 private:
  bool wants_json_;
  std::FILE* json_ = nullptr;
  std::vector<Requirement> requirements_;
};

}  // namespace quadrille::bench
