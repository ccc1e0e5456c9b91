// SPDX-License-Identifier: Apache-2.0
// quadrille chat: a conversation, a line at a time. Ctrl-C stops an answer, Ctrl-D ends; "/clear" forgets the
// conversation.
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/generate.h"
#include "cli/line_reader.h"
#include "cli/load_model.h"
#include "cli/ranks.h"
#include "cli/signals.h"
#include "session/text_model.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kDefaultPositions = 8192;
constexpr int64_t kDefaultAnswerTokens = 1024;

struct ChatOptions {
  ModelOptions model;
  SamplingOptions sampling;
  std::string system;
};

class Chat {
 public:
  Chat(Console& console, const ChatOptions& options, const session::TextModel& text, model::AnyModel& model)
      : console_(console),
        options_(options),
        text_(text),
        model_(model),
        engine_(model, engine_options(), text.text_streams()) {
    clear();
  }

  void clear() {
    messages_.clear();
    if (!options_.system.empty()) messages_.push_back({"system", options_.system});
  }

  // Answers one line. An error that concerns this line only (no room left) is told, and the line forgotten.
  Status answer(const std::string& line) {
    messages_.push_back({"user", line});
    QD_TRY(std::vector<int32_t> prompt, text_.encode_chat(messages_));
    const auto answer = generate(
        engine_, make_request(std::move(prompt)),
        [this](std::string_view piece) {
          console_.write(piece);
          console_.flush();
          return !console_.closed();
        },
        options_.model.ranks);
    if (!answer && answer.error().code == ErrorCode::kCapacity) {
      console_.error(answer.error().message + "; '/clear' begins a new conversation");
      messages_.pop_back();
      return {};
    }
    if (!answer) return answer.error();
    console_.write(answer->finish == engine::FinishReason::kCancelled ? " [stopped]\n" : "\n");
    console_.flush();
    messages_.push_back({"assistant", answer->text});
    return {};
  }

  engine::EngineMetrics metrics() const { return engine_.metrics(); }

 private:
  static engine::EngineOptions engine_options() {
    engine::EngineOptions options;
    options.prefix_cache = true;  // the conversation so far is not computed again
    return options;
  }

  engine::Request make_request(std::vector<int32_t> prompt) const {
    engine::Request request;
    const int64_t limit = std::min(model_.max_positions(), model_.num_pages() * model::kPagePositions);
    const int64_t room = std::max<int64_t>(limit - static_cast<int64_t>(prompt.size()), 1);
    const int64_t wanted = options_.sampling.max_tokens > 0 ? options_.sampling.max_tokens : kDefaultAnswerTokens;
    request.max_tokens = std::min(wanted, room);
    request.prompt = std::move(prompt);
    request.sampling = options_.sampling.params;
    // Another seed each turn, so that the same question may get another answer.
    request.sampling.seed = options_.model.seed + messages_.size();
    request.stop_ids = text_.stop_ids(model_.config());
    request.stop_strings = options_.sampling.stop;
    request.ignore_stop_ids = options_.sampling.ignore_eos;
    return request;
  }

  Console& console_;
  const ChatOptions& options_;
  const session::TextModel& text_;
  model::AnyModel& model_;
  engine::Engine engine_;
  std::vector<session::Message> messages_;
};

// The next line of stdin, which rank 0 reads, on every rank; the end too where nobody reads the answers any more.
Result<LineReader::Outcome> next_line(const Console& console, LineReader& reader, parallel::Communicator* ranks,
                                      std::string* line) {
  using Outcome = LineReader::Outcome;
  QD_TRY(const std::string told, text_of_rank_0(ranks, [&]() -> Result<std::string> {
           if (console.closed()) return std::string(1, static_cast<char>(Outcome::kEnd));
           QD_TRY(const Outcome outcome, reader.next(line));
           if (terminated()) return interrupted_error("chat");
           return static_cast<char>(outcome) + *line;
         }));
  *line = told.substr(1);
  return static_cast<Outcome>(told[0]);
}

Status talk(Console& console, Chat& chat, bool is_terminal, parallel::Communicator* ranks) {
  LineReader reader;
  std::string line;
  while (true) {
    if (is_terminal) console.write("> ");
    console.flush();
    QD_TRY(const LineReader::Outcome outcome, next_line(console, reader, ranks, &line));
    if (outcome == LineReader::Outcome::kEnd) break;
    if (outcome == LineReader::Outcome::kInterrupted) {
      clear_interrupt();
      console.write(" (Ctrl-D ends)\n");
      continue;
    }
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (line == "/clear") {
      chat.clear();
      continue;
    }
    QD_TRY_STATUS(chat.answer(line));
    if (terminated()) return interrupted_error("chat");
    clear_interrupt();  // it stopped the answer; the conversation goes on
  }
  if (is_terminal) console.write("\n");
  return {};
}

Status run_chat(Console& console, const ChatOptions& options) {
  QD_TRY(const session::TextModel text, session::TextModel::load(options.model.folder));
  QD_TRY([[maybe_unused]] const auto probe, text.encode_chat({{"user", "Hello"}}));  // a clear error before the load
  QD_TRY(const int64_t positions, cache_positions(options.model.folder, 1, kDefaultPositions));
  QD_TRY(const LoadedModel loaded, load_model(console, options.model, positions));
  const bool is_terminal = ::isatty(STDIN_FILENO) == 1;
  if (is_terminal && !options.model.quiet) {
    console.note(fmt::format("[{}; Ctrl-C stops an answer, Ctrl-D ends, /clear begins anew]", settings_text(loaded)));
  }
  Chat chat(console, options, text, *loaded.model);
  QD_TRY_STATUS(talk(console, chat, is_terminal, options.model.ranks));
  console.flush();
  if (!options.model.quiet) console.note(fmt::format("[{}]", speed_text(chat.metrics())));
  return {};
}

}  // namespace

void add_chat(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("chat", "Talk with a model, line by line");
  auto options = std::make_shared<ChatOptions>();
  add_model_options(*app, options->model);
  add_rank_options(*app, options->model);
  app->add_option("--system", options->system, "System message")->type_name("TEXT");
  add_sampling_options(*app, options->sampling);
  commands.push_back({app, [options](Console& console) {
                        return run_on_ranks(console, options->model,
                                            [&](Console& own_console, const ModelOptions& model) {
                                              ChatOptions own = *options;
                                              own.model = model;
                                              return run_chat(own_console, own);
                                            });
                      }});
}

}  // namespace quadrille::cli
