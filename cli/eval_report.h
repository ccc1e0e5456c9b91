// SPDX-License-Identifier: Apache-2.0
// What eval found: counts, accuracies with standard errors, as a table for people and JSON for scripts.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace quadrille::cli {

// Share of right answers. The standard error is that of a mean of 0/1 values, sqrt(p (1 - p) / (n - 1)), as the
// field's harnesses give it; 0 below two values.
struct Score {
  int64_t correct = 0;
  int64_t count = 0;
  void add(bool is_correct);
  double accuracy() const;
  double standard_error() const;
};

// One answered problem.
struct AnswerRecord {
  std::string id, category, expected, found, text, finish;
  std::string form;  // "marked", "fallback", "none"
  int64_t steps = -1;
  int64_t tokens = 0;
  bool correct = false;
};

struct AccuracyReport {
  std::string task, model, data;
  nlohmann::json settings;  // numerics, rounding, kernels, sampling
  std::vector<AnswerRecord> records;
  int64_t total_problems = 0;  // more than records after Ctrl-C
  double seconds = 0;
  int64_t prompt_tokens = 0;

  Score total() const;
  std::map<std::string, Score> by_category() const;
  std::map<int64_t, Score> by_steps() const;
  int64_t count_form(const std::string& form) const;
  int64_t count_finish(const std::string& finish) const;
  int64_t answer_tokens() const;
};

// Mean negative log-likelihood of texts that were cut into windows. The standard error of the mean takes the windows as
// the independent units (tokens of one window are not): that of the ratio sum(nll) / sum(tokens).
struct PerplexityReport {
  struct Window {
    double nll = 0;      // sum over the scored tokens, natural logarithm
    int64_t tokens = 0;  // scored: all but the first
  };
  std::string model, data;
  nlohmann::json settings;
  std::vector<Window> windows;
  int64_t total_windows = 0;
  int64_t text_bytes = 0;
  double seconds = 0;

  int64_t tokens() const;
  double mean_nll() const;
  double mean_nll_error() const;
  double perplexity() const;
  double perplexity_error() const;  // first order: perplexity * mean_nll_error
};

std::string report_text(const AccuracyReport& report);
nlohmann::json report_json(const AccuracyReport& report);
std::string report_text(const PerplexityReport& report);
nlohmann::json report_json(const PerplexityReport& report);

}  // namespace quadrille::cli
