// SPDX-License-Identifier: Apache-2.0
// Sums over records and the two forms of a report.
#include "cli/eval_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/progress.h"
#include "cli/text_table.h"

namespace quadrille::cli {
namespace {

nlohmann::json score_json(const Score& score) {
  return {{"count", score.count},
          {"correct", score.correct},
          {"accuracy", score.accuracy()},
          {"standard_error", score.standard_error()}};
}

std::vector<std::string> score_row(std::string name, const Score& score) {
  return {std::move(name), std::to_string(score.count), std::to_string(score.correct),
          fmt::format("{:.2f} %", 100 * score.accuracy()), fmt::format("{:.2f}", 100 * score.standard_error())};
}

double rate(int64_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

}  // namespace

void Score::add(bool is_correct) {
  ++count;
  correct += is_correct ? 1 : 0;
}

double Score::accuracy() const {
  return count == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(count);
}

double Score::standard_error() const {
  if (count < 2) return 0;
  return std::sqrt(accuracy() * (1 - accuracy()) / static_cast<double>(count - 1));
}

Score AccuracyReport::total() const {
  Score score;
  for (const AnswerRecord& record : records) score.add(record.correct);
  return score;
}

std::map<std::string, Score> AccuracyReport::by_category() const {
  std::map<std::string, Score> scores;
  for (const AnswerRecord& record : records) {
    if (!record.category.empty()) scores[record.category].add(record.correct);
  }
  return scores;
}

std::map<int64_t, Score> AccuracyReport::by_steps() const {
  std::map<int64_t, Score> scores;
  for (const AnswerRecord& record : records) {
    if (record.steps >= 0) scores[record.steps].add(record.correct);
  }
  return scores;
}

int64_t AccuracyReport::count_form(const std::string& form) const {
  return std::count_if(records.begin(), records.end(), [&](const AnswerRecord& r) { return r.form == form; });
}

int64_t AccuracyReport::count_finish(const std::string& finish) const {
  return std::count_if(records.begin(), records.end(), [&](const AnswerRecord& r) { return r.finish == finish; });
}

int64_t AccuracyReport::answer_tokens() const {
  int64_t tokens = 0;
  for (const AnswerRecord& record : records) tokens += record.tokens;
  return tokens;
}

std::string report_text(const AccuracyReport& report) {
  TextTable table({report.task, ">problems", ">right", ">accuracy", ">+-"});
  table.add_row(score_row("all", report.total()));
  for (const auto& [category, score] : report.by_category()) table.add_row(score_row(category, score));
  for (const auto& [steps, score] : report.by_steps()) table.add_row(score_row(fmt::format("{} steps", steps), score));
  std::string text = table.text();
  text +=
      fmt::format("+-: standard error in points. Answers without the agreed mark: {}, without any: {}, cut off: {}.\n",
                  report.count_form("fallback"), report.count_form("none"), report.count_finish("length"));
  text += fmt::format("{} answer tokens in {}: {:.1f} tokens/s.\n", report.answer_tokens(),
                      seconds_text(report.seconds), rate(report.answer_tokens(), report.seconds));
  const auto done = static_cast<int64_t>(report.records.size());
  if (done < report.total_problems) {
    text += fmt::format("Stopped early: {} of {} problems.\n", done, report.total_problems);
  }
  return text;
}

nlohmann::json report_json(const AccuracyReport& report) {
  nlohmann::json json = {{"task", report.task},
                         {"model", report.model},
                         {"data", report.data},
                         {"settings", report.settings},
                         {"complete", static_cast<int64_t>(report.records.size()) == report.total_problems},
                         {"seconds", report.seconds},
                         {"prompt_tokens", report.prompt_tokens},
                         {"answer_tokens", report.answer_tokens()}};
  json.update(score_json(report.total()));
  json["forms"] = {{"marked", report.count_form("marked")},
                   {"fallback", report.count_form("fallback")},
                   {"none", report.count_form("none")}};
  json["cut_off"] = report.count_finish("length");
  json["by_category"] = nlohmann::json::object();
  for (const auto& [category, score] : report.by_category()) json["by_category"][category] = score_json(score);
  json["by_steps"] = nlohmann::json::object();
  for (const auto& [steps, score] : report.by_steps()) json["by_steps"][std::to_string(steps)] = score_json(score);
  json["records"] = nlohmann::json::array();
  for (const AnswerRecord& r : report.records) {
    nlohmann::json record = {{"id", r.id},     {"expected", r.expected}, {"found", r.found},   {"correct", r.correct},
                             {"form", r.form}, {"finish", r.finish},     {"tokens", r.tokens}, {"text", r.text}};
    if (!r.category.empty()) record["category"] = r.category;
    if (r.steps >= 0) record["steps"] = r.steps;
    json["records"].push_back(std::move(record));
  }
  return json;
}

int64_t PerplexityReport::tokens() const {
  int64_t count = 0;
  for (const Window& window : windows) count += window.tokens;
  return count;
}

double PerplexityReport::mean_nll() const {
  double nll = 0;
  for (const Window& window : windows) nll += window.nll;
  return tokens() == 0 ? 0 : nll / static_cast<double>(tokens());
}

double PerplexityReport::mean_nll_error() const {
  if (windows.size() < 2 || tokens() == 0) return 0;
  const double mean = mean_nll();
  double squares = 0;
  for (const Window& window : windows) {
    const double residual = window.nll - mean * static_cast<double>(window.tokens);
    squares += residual * residual;
  }
  const auto n = static_cast<double>(windows.size());
  return std::sqrt(squares * n / (n - 1)) / static_cast<double>(tokens());
}

double PerplexityReport::perplexity() const {
  return std::exp(mean_nll());
}
double PerplexityReport::perplexity_error() const {
  return perplexity() * mean_nll_error();
}

std::string report_text(const PerplexityReport& report) {
  TextTable table({"perplexity", ">value", ">+-"});
  table.add_row(
      {"perplexity", fmt::format("{:.4f}", report.perplexity()), fmt::format("{:.4f}", report.perplexity_error())});
  table.add_row(
      {"nats a token", fmt::format("{:.5f}", report.mean_nll()), fmt::format("{:.5f}", report.mean_nll_error())});
  std::string text = table.text();
  text += fmt::format("{} tokens scored in {} windows, {} ({:.1f} tokens/s). +-: standard error over windows.\n",
                      report.tokens(), report.windows.size(), seconds_text(report.seconds),
                      rate(report.tokens(), report.seconds));
  const auto done = static_cast<int64_t>(report.windows.size());
  if (done < report.total_windows)
    text += fmt::format("Stopped early: {} of {} windows.\n", done, report.total_windows);
  return text;
}

nlohmann::json report_json(const PerplexityReport& report) {
  return {{"task", "perplexity"},
          {"model", report.model},
          {"data", report.data},
          {"settings", report.settings},
          {"complete", static_cast<int64_t>(report.windows.size()) == report.total_windows},
          {"perplexity", report.perplexity()},
          {"perplexity_standard_error", report.perplexity_error()},
          {"nats_per_token", report.mean_nll()},
          {"nats_per_token_standard_error", report.mean_nll_error()},
          {"tokens", report.tokens()},
          {"windows", report.windows.size()},
          {"text_bytes", report.text_bytes},
          {"seconds", report.seconds}};
}

}  // namespace quadrille::cli
