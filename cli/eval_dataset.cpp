// SPDX-License-Identifier: Apache-2.0
// Reads problems line by line; every error says which line and which key.
#include "cli/eval_dataset.h"

#include <algorithm>
#include <functional>

#include "cli/eval_answer.h"
#include "formats/json.h"

namespace quadrille::cli {
namespace {

using formats::JsonObject;

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;

// Calls take(object, line number) for each line that holds an object, up to `limit` times (0: all).
Status for_each_object(const std::string& path, int64_t limit,
                       const std::function<Status(const JsonObject&, int64_t)>& take) {
  QD_TRY(const std::string text, formats::read_text_file(path, kMaxFileBytes));
  int64_t line_number = 0, taken = 0;
  for (size_t begin = 0; begin < text.size() && (limit == 0 || taken < limit);) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", path, line_number);
    QD_TRY(const formats::Json json, formats::parse_json(line, where));
    if (!json.is_object()) {
      return make_error(ErrorCode::kInvalidData, "{}: expected one JSON object a line (JSONL), found '{}'", where,
                        formats::json_excerpt(json));
    }
    QD_TRY_STATUS(take(JsonObject(json, where), line_number));
    ++taken;
  }
  if (taken > 0) return {};
  return make_error(ErrorCode::kInvalidData, "{}: expected at least one line with a JSON object, found none", path);
}

// Lines with text in front of "####": one a step in GSM8K.
int64_t lines_before_mark(const std::string& answer) {
  const size_t mark = std::min(answer.rfind("####"), answer.size());
  int64_t lines = 0;
  bool has_text = false;
  for (size_t i = 0; i < mark; ++i) {
    if (answer[i] == '\n') {
      lines += has_text ? 1 : 0;
      has_text = false;
    } else if (answer[i] != ' ' && answer[i] != '\r') {
      has_text = true;
    }
  }
  return lines + (has_text ? 1 : 0);
}

Result<Problem> gsm8k_problem(const JsonObject& object, int64_t line_number) {
  Problem problem;
  problem.id = std::to_string(line_number);
  QD_TRY(problem.question, object.get_string("question"));
  QD_TRY(problem.solution, object.get_string("answer"));
  const ExtractedAnswer answer = extract_number(problem.solution);
  if (answer.form != AnswerForm::kMarked) return object.error("answer", "a text that ends in '#### NUMBER'");
  problem.expected = answer.value;
  QD_TRY(const auto category, object.find_string("category"));
  problem.category = category.value_or("");
  QD_TRY(problem.steps, object.find_int("steps", 0, 1'000'000));
  if (!problem.steps) problem.steps = lines_before_mark(problem.solution);
  return problem;
}

Result<Problem> mmlu_pro_problem(const JsonObject& object, int64_t line_number) {
  Problem problem;
  problem.id = std::to_string(line_number);
  if (const formats::Json* id = object.find("question_id"))
    problem.id = id->is_string() ? id->get<std::string>() : id->dump();
  QD_TRY(problem.question, object.get_string("question"));
  QD_TRY(auto options, object.find_string_list("options"));
  if (!options || options->size() < 2 || options->size() > 26)
    return object.error("options", "a list of 2 to 26 strings");
  problem.options = std::move(*options);
  const auto count = static_cast<int64_t>(problem.options.size());
  QD_TRY(problem.expected, object.get_string("answer"));
  const bool is_option =
      problem.expected.size() == 1 && problem.expected[0] >= 'A' && problem.expected[0] < 'A' + count;
  if (!is_option) {
    return object.error("answer", fmt::format("a letter of A..{}", option_letter(problem.options.size() - 1)));
  }
  QD_TRY(const auto index, object.find_int("answer_index", 0, count - 1));
  if (index && option_letter(static_cast<size_t>(*index)) != problem.expected) {
    return object.error("answer_index", fmt::format("the index of answer '{}'", problem.expected));
  }
  QD_TRY(const auto category, object.find_string("category"));
  problem.category = category.value_or("");
  QD_TRY(const auto solution, object.find_string("cot_content"));
  problem.solution = solution.value_or("");
  QD_TRY(problem.steps, object.find_int("steps", 0, 1'000'000));
  return problem;
}

Result<std::vector<Problem>> read_problems(const std::string& path, int64_t limit,
                                           Result<Problem> (*read)(const JsonObject&, int64_t)) {
  std::vector<Problem> problems;
  QD_TRY_STATUS(for_each_object(path, limit, [&](const JsonObject& object, int64_t line_number) -> Status {
    QD_TRY(Problem problem, read(object, line_number));
    problems.push_back(std::move(problem));
    return {};
  }));
  return problems;
}

}  // namespace

Result<std::vector<Problem>> read_gsm8k(const std::string& path, int64_t limit) {
  return read_problems(path, limit, gsm8k_problem);
}

Result<std::vector<Problem>> read_mmlu_pro(const std::string& path, int64_t limit) {
  return read_problems(path, limit, mmlu_pro_problem);
}

Result<std::vector<Problem>> read_any_problems(const std::string& path, int64_t limit) {
  bool has_options = false;
  QD_TRY_STATUS(for_each_object(path, 1, [&](const JsonObject& object, int64_t) -> Status {
    has_options = object.has("options");
    return {};
  }));
  return has_options ? read_mmlu_pro(path, limit) : read_gsm8k(path, limit);
}

Result<std::vector<std::string>> read_texts(const std::string& path, int64_t limit) {
  std::vector<std::string> texts;
  if (!path.ends_with(".jsonl")) {
    QD_TRY(std::string text, formats::read_text_file(path, kMaxFileBytes));
    if (text.empty()) return make_error(ErrorCode::kInvalidData, "{}: expected text, found an empty file", path);
    texts.push_back(std::move(text));
    return texts;
  }
  QD_TRY_STATUS(for_each_object(path, limit, [&](const JsonObject& object, int64_t) -> Status {
    QD_TRY(std::string text, object.get_string("text"));
    if (!text.empty()) texts.push_back(std::move(text));
    return {};
  }));
  return texts;
}

std::string option_letter(size_t index) {
  return std::string(1, static_cast<char>('A' + index));
}

std::string question_text(const Problem& problem) {
  if (problem.options.empty()) return problem.question;
  std::string text = fmt::format("Question:\n{}\nOptions:\n", problem.question);
  for (size_t i = 0; i < problem.options.size(); ++i) {
    text += fmt::format("{}. {}\n", option_letter(i), problem.options[i]);
  }
  return text + "Answer: Let's think step by step.";
}

}  // namespace quadrille::cli
