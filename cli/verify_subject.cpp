// SPDX-License-Identifier: Apache-2.0
#include "cli/verify_subject.h"

#include <algorithm>
#include <random>

#include "cli/eval_answer.h"
#include "cli/eval_prompts.h"

namespace quadrille::cli {

Sequences built_in_sequences(int64_t vocabulary, int64_t longest, uint64_t seed) {
  std::mt19937_64 random(seed);
  Sequences sequences;
  for (const int64_t wanted : {1, 7, 40}) {
    std::vector<int32_t>& ids = sequences.emplace_back();
    for (int64_t i = 0; i < std::min(wanted, longest); ++i) {
      ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocabulary)));
    }
  }
  return sequences;
}

Result<Subject> make_subject(const VerifyOptions& options, const model::ModelConfig& config,
                             const Sequences& sequences) {
  Subject subject;
  std::vector<std::vector<int32_t>> prompts = sequences;
  if (!options.problems.empty() || !options.prompt.empty()) {
    QD_TRY(session::TextModel text, session::TextModel::load(options.model.folder));
    subject.text.emplace(std::move(text));
  }
  if (!options.problems.empty()) {
    QD_TRY(subject.problems, read_any_problems(options.problems, options.count));
    QD_TRY(prompts, make_prompts(*subject.text, subject.problems, {}, {}));
  } else if (!options.prompt.empty()) {
    const bool is_chat = subject.text->has_chat_template();
    auto ids =
        is_chat ? subject.text->encode_chat({{"user", options.prompt}}) : subject.text->encode(options.prompt, true);
    if (!ids) return ids.error();
    prompts = {std::move(*ids)};
  }
  for (std::vector<int32_t>& prompt : prompts) {
    engine::Request& request = subject.requests.emplace_back();
    const int64_t room = config.max_positions - static_cast<int64_t>(prompt.size());
    request.prompt = std::move(prompt);
    request.max_tokens = std::clamp<int64_t>(options.max_tokens, 1, std::max<int64_t>(room, 1));
    if (subject.text) request.stop_ids = subject.text->stop_ids(config);
  }
  return subject;
}

int64_t Subject::longest() const {
  int64_t most = 0;
  for (const engine::Request& request : requests) {
    most = std::max(most, static_cast<int64_t>(request.prompt.size()) + request.max_tokens);
  }
  return most;
}

int64_t count_right(const std::vector<Problem>& problems, const Texts& texts) {
  int64_t right = 0;
  for (size_t i = 0; i < problems.size(); ++i) {
    const auto found = problems[i].options.empty() ? extract_number(texts.text[i])
                                                   : extract_letter(texts.text[i], problems[i].options.size());
    right += found.value == problems[i].expected ? 1 : 0;
  }
  return right;
}

}  // namespace quadrille::cli
