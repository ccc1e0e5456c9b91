// SPDX-License-Identifier: Apache-2.0
// Prompts first, so that the cache can be sized; then all requests through one engine.
#include "cli/eval_accuracy.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "cli/eval_answer.h"
#include "cli/generate.h"
#include "cli/load_model.h"
#include "cli/progress.h"
#include "cli/signals.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kDefaultAnswerTokens = 512;

const char* form_name(AnswerForm form) {
  switch (form) {
    case AnswerForm::kMarked:
      return "marked";
    case AnswerForm::kFallback:
      return "fallback";
    case AnswerForm::kNone:
      return "none";
  }
  return "";
}

Result<std::vector<Problem>> read_task(const std::string& task, const std::string& path, int64_t limit) {
  return task == "gsm8k" ? read_gsm8k(path, limit) : read_mmlu_pro(path, limit);
}

AnswerRecord score(const Problem& problem, const Answer& answer) {
  const ExtractedAnswer found =
      problem.options.empty() ? extract_number(answer.text) : extract_letter(answer.text, problem.options.size());
  AnswerRecord record;
  record.id = problem.id;
  record.category = problem.category;
  record.expected = problem.expected;
  record.found = found.value;
  record.form = form_name(found.form);
  record.text = answer.text;
  record.finish = engine::finish_reason_name(answer.finish);
  record.steps = problem.steps.value_or(-1);
  record.tokens = static_cast<int64_t>(answer.tokens.size());
  record.correct = found.value == problem.expected;
  return record;
}

Result<std::vector<engine::Request>> make_requests(std::vector<std::vector<int32_t>> prompts,
                                                   const std::vector<Problem>& problems, const session::TextModel& text,
                                                   const model::AnyModel& model, bool is_plain, int64_t max_tokens) {
  const int64_t limit = std::min(model.max_positions(), model.num_pages() * model::kPagePositions);
  std::vector<engine::Request> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const auto length = static_cast<int64_t>(prompts[i].size());
    if (length >= limit) {
      return make_error(
          ErrorCode::kCapacity,
          "problem {}: its prompt has {} tokens; the model takes {} positions and the cache {}; use fewer "
          "--shots or more --cache-tokens",
          problems[i].id, length, model.max_positions(), model.num_pages() * model::kPagePositions);
    }
    engine::Request& request = requests.emplace_back();
    request.prompt = std::move(prompts[i]);
    request.max_tokens = std::min(max_tokens, limit - length);
    request.stop_ids = text.stop_ids(model.config());
    if (is_plain) request.stop_strings = plain_stop_strings();
  }
  return requests;
}

// Answers all requests; the records come in the order of the file, whatever ended first.
Result<std::vector<AnswerRecord>> answer_all(Console& console, const EvalOptions& options, engine::Engine& engine,
                                             std::vector<engine::Request> requests,
                                             const std::vector<Problem>& problems) {
  Progress progress(console, options.task, "problems", options.model.quiet);
  std::map<size_t, AnswerRecord> records;
  Score so_far;
  const auto total = static_cast<int64_t>(problems.size());
  QD_TRY_STATUS(generate_all(
      engine, std::move(requests), options.batch,
      [&](size_t index, const Answer& answer) {
        AnswerRecord record = score(problems[index], answer);
        so_far.add(record.correct);
        records.emplace(index, std::move(record));
        progress.update(so_far.count, total, fmt::format("{:.1f} % right", 100 * so_far.accuracy()));
        return true;
      },
      options.model.ranks));
  std::vector<AnswerRecord> sorted;
  sorted.reserve(records.size());
  for (auto& [index, record] : records) sorted.push_back(std::move(record));
  return sorted;
}

}  // namespace

Result<AccuracyReport> eval_accuracy(Console& console, const EvalOptions& options) {
  QD_TRY(const std::vector<Problem> problems, read_task(options.task, options.data, options.limit));
  std::vector<Problem> examples;
  if (options.prompt.shots > 0) {
    QD_TRY(examples, read_task(options.task, options.shots_data, 0));
  }
  QD_TRY(const session::TextModel text, session::TextModel::load(options.model.folder));
  QD_TRY(auto prompts, make_prompts(text, problems, examples, options.prompt));
  int64_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, static_cast<int64_t>(prompt.size()));
  const int64_t max_tokens = options.max_tokens > 0 ? options.max_tokens : kDefaultAnswerTokens;
  QD_TRY(const int64_t positions, cache_positions(options.model.folder, options.batch, longest + max_tokens));
  QD_TRY(const LoadedModel loaded, load_model(console, options.model, positions));
  const bool is_plain = options.prompt.raw || !text.has_chat_template();
  QD_TRY(auto requests, make_requests(std::move(prompts), problems, text, *loaded.model, is_plain, max_tokens));

  AccuracyReport report;
  report.task = options.task;
  report.model = options.model.folder;
  report.data = options.data;
  report.settings = settings_json(loaded, options.model);
  report.settings["batch"] = options.batch;
  report.settings["max_tokens"] = max_tokens;
  report.settings["shots"] = options.prompt.shots;
  report.total_problems = static_cast<int64_t>(problems.size());
  for (const auto& request : requests) report.prompt_tokens += static_cast<int64_t>(request.prompt.size());

  engine::EngineOptions engine_options;
  engine_options.max_sequences = options.batch;
  engine::Engine engine(*loaded.model, engine_options, text.text_streams());
  const auto start = std::chrono::steady_clock::now();
  QD_TRY(report.records, answer_all(console, options, engine, std::move(requests), problems));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace quadrille::cli
