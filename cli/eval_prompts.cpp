// SPDX-License-Identifier: Apache-2.0
// Builds conversations, renders them, and encodes them.
#include "cli/eval_prompts.h"

namespace quadrille::cli {
namespace {

std::string instruction(const Problem& problem) {
  if (problem.options.empty()) return "Solve the problem step by step. End with a line '#### N', N being the number.";
  const std::string about = problem.category.empty() ? "" : " about " + problem.category;
  return fmt::format(
      "The following is a multiple choice question{}. Think step by step and finish with \"the answer is (X)\", X "
      "being "
      "the letter of the right choice.",
      about);
}

// A worked solution without the words that the question already ends in.
std::string example_answer(const Problem& example) {
  constexpr std::string_view kOpening = "A: Let's think step by step.";
  const std::string& solution = example.solution;
  if (!solution.starts_with(kOpening)) return solution;
  const size_t begin = solution.find_first_not_of(' ', kOpening.size());
  return begin == std::string::npos ? "" : solution.substr(begin);
}

// The first `shots` examples of the problem's category, filled up with the first of the others.
std::vector<const Problem*> choose_examples(const Problem& problem, const std::vector<Problem>& examples,
                                            int64_t shots) {
  std::vector<const Problem*> chosen;
  for (const bool same_category : {true, false}) {
    for (const Problem& example : examples) {
      if (static_cast<int64_t>(chosen.size()) == shots) return chosen;
      if ((example.category == problem.category) != same_category) continue;
      if (example.question != problem.question && !example.solution.empty()) chosen.push_back(&example);
    }
  }
  return chosen;
}

std::vector<session::Message> conversation(const Problem& problem, const std::vector<const Problem*>& examples,
                                           const PromptOptions& options) {
  std::vector<session::Message> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  const std::string opening = options.instruct ? instruction(problem) + "\n\n" : "";
  for (const Problem* example : examples) {
    messages.push_back({"user", opening + question_text(*example)});
    messages.push_back({"assistant", example_answer(*example)});
  }
  messages.push_back({"user", opening + question_text(problem)});
  return messages;
}

// "Question: Q\nAnswer: A\n\n" for each turn; MMLU-Pro's questions bring these words along.
std::string plain_text(const std::vector<session::Message>& messages) {
  std::string text;
  for (const session::Message& message : messages) {
    const bool has_words = message.content.find("Question:") != std::string::npos;
    if (message.role == "system") {
      text += message.content + "\n\n";
    } else if (message.role == "assistant") {
      text += " " + message.content + "\n\n";
    } else {
      text += has_words ? message.content : "Question: " + message.content + "\nAnswer:";
    }
  }
  return text;
}

}  // namespace

Result<std::vector<std::vector<int32_t>>> make_prompts(const session::TextModel& text,
                                                       const std::vector<Problem>& problems,
                                                       const std::vector<Problem>& examples,
                                                       const PromptOptions& options) {
  const bool as_chat = text.has_chat_template() && !options.raw;
  std::vector<std::vector<int32_t>> prompts;
  for (const Problem& problem : problems) {
    const auto messages = conversation(problem, choose_examples(problem, examples, options.shots), options);
    auto ids = as_chat ? text.encode_chat(messages) : text.encode(plain_text(messages), true);
    if (!ids) return ids.error().in(fmt::format("problem {}", problem.id));
    prompts.push_back(std::move(*ids));
  }
  return prompts;
}

std::vector<std::string> plain_stop_strings() {
  return {"\nQuestion:", "\n\n\n"};
}

}  // namespace quadrille::cli
