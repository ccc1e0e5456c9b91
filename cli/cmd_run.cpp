// SPDX-License-Identifier: Apache-2.0
// quadrille run: one prompt in, its answer streamed out; or the demonstration, which answers word problems from a file
// and shows the right answer beside each.
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "cli/commands.h"
#include "cli/eval_answer.h"
#include "cli/eval_prompts.h"
#include "cli/generate.h"
#include "cli/json_output.h"
#include "cli/line_reader.h"
#include "cli/load_model.h"
#include "cli/rank_grid.h"
#include "cli/ranks.h"
#include "cli/signals.h"
#include "formats/json.h"
#include "session/text_model.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kDefaultAnswerTokens = 512;

struct RunOptions {
  ModelOptions model;
  SamplingOptions sampling;
  std::string prompt, prompt_file, system, problems;
  bool has_prompt = false;
  int64_t count = 5;
  bool raw = false;
  bool as_json = false;
};

Result<std::string> read_prompt(const RunOptions& options) {
  if (options.has_prompt) return options.prompt;
  if (!options.prompt_file.empty() && options.prompt_file != "-") return formats::read_text_file(options.prompt_file);
  QD_TRY(std::string text, read_all(STDIN_FILENO));
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

Result<std::vector<int32_t>> encode_prompt(const session::TextModel& text, const RunOptions& options,
                                           const std::string& prompt) {
  if (prompt.empty())
    return make_error(ErrorCode::kInvalidArgument, "the prompt is empty; give at least one character");
  if (options.raw || !text.has_chat_template()) return text.encode(prompt, true);
  std::vector<session::Message> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", prompt});
  return text.encode_chat(messages);
}

// Without --max-tokens the answer may fill what the model and the cache leave.
engine::Request make_request(std::vector<int32_t> prompt, const RunOptions& options, const session::TextModel& text,
                             const model::AnyModel& model) {
  engine::Request request;
  const int64_t limit = std::min(model.max_positions(), model.num_pages() * model::kPagePositions);
  const int64_t room = std::max<int64_t>(limit - static_cast<int64_t>(prompt.size()), 1);
  request.max_tokens =
      options.sampling.max_tokens > 0 ? options.sampling.max_tokens : std::min(kDefaultAnswerTokens, room);
  request.prompt = std::move(prompt);
  request.sampling = options.sampling.params;
  request.sampling.seed = options.model.seed;
  request.stop_ids = text.stop_ids(model.config());
  request.stop_strings = options.sampling.stop;
  request.ignore_stop_ids = options.sampling.ignore_eos;
  return request;
}

TextSink stream_to(Console& console, bool enabled) {
  return [&console, enabled](std::string_view piece) {
    if (!enabled) return true;
    console.write(piece);
    console.flush();
    return !console.closed();
  };
}

Status print_json(Console& console, const RunOptions& options, const LoadedModel& loaded, const Answer& answer,
                  const engine::EngineMetrics& metrics, int64_t prompt_tokens) {
  std::vector<int32_t> ids;
  ids.reserve(answer.tokens.size());
  for (const engine::TokenOutput& token : answer.tokens) ids.push_back(token.id);
  const nlohmann::json json = {{"text", answer.text},
                               {"ids", ids},
                               {"finish", engine::finish_reason_name(answer.finish)},
                               {"prompt_tokens", prompt_tokens},
                               {"settings", settings_json(loaded, options.model)},
                               {"speed", speed_json(metrics)}};
  return write_json(console, "-", json);
}

Status run_prompt(Console& console, const RunOptions& options) {
  QD_TRY(const std::string prompt, text_of_rank_0(options.model.ranks, [&] { return read_prompt(options); }));
  QD_TRY(const session::TextModel text, session::TextModel::load(options.model.folder));
  QD_TRY(auto ids, encode_prompt(text, options, prompt));
  const auto prompt_tokens = static_cast<int64_t>(ids.size());
  const int64_t answer_tokens = options.sampling.max_tokens > 0 ? options.sampling.max_tokens : kDefaultAnswerTokens;
  QD_TRY(const int64_t positions, cache_positions(options.model.folder, 1, prompt_tokens + answer_tokens));
  QD_TRY(const LoadedModel loaded, load_model(console, options.model, positions));
  engine::Engine engine(*loaded.model, {}, text.text_streams());
  QD_TRY(const Answer answer, generate(engine, make_request(std::move(ids), options, text, *loaded.model),
                                       stream_to(console, !options.as_json), loaded.ranks));
  if (options.as_json) {
    QD_TRY_STATUS(print_json(console, options, loaded, answer, engine.metrics(), prompt_tokens));
  } else {
    console.write("\n");
    console.flush();
    if (!options.model.quiet && !console.closed()) {
      console.note(fmt::format("[{}; {}]", speed_text(engine.metrics()), settings_text(loaded)));
    }
  }
  if (interrupted()) return interrupted_error("run");
  return {};
}

// Streams one problem; true when its answer is right.
Result<bool> show_problem(Console& console, engine::Engine& engine, engine::Request request, const Problem& problem,
                          const std::string& heading, parallel::Communicator* ranks) {
  const std::string question = problem.options.empty() ? problem.question : question_text(problem);
  console.print("{} {}\n\n", heading, question);
  console.flush();
  QD_TRY(const Answer answer, generate(engine, std::move(request), stream_to(console, true), ranks));
  const ExtractedAnswer found =
      problem.options.empty() ? extract_number(answer.text) : extract_letter(answer.text, problem.options.size());
  const bool is_right = found.value == problem.expected;
  console.print("\n=> right answer: {}; the model's: {} ({})\n\n", problem.expected,
                found.value.empty() ? "none" : found.value, is_right ? "right" : "wrong");
  console.flush();
  return is_right;
}

Status run_problems(Console& console, const RunOptions& options) {
  QD_TRY(const std::vector<Problem> problems, read_any_problems(options.problems, options.count));
  QD_TRY(const session::TextModel text, session::TextModel::load(options.model.folder));
  PromptOptions prompt_options;
  prompt_options.raw = options.raw;
  prompt_options.system = options.system;
  QD_TRY(auto prompts, make_prompts(text, problems, {}, prompt_options));
  size_t longest = 0;
  for (const auto& prompt : prompts) longest = std::max(longest, prompt.size());
  const int64_t answer_tokens = options.sampling.max_tokens > 0 ? options.sampling.max_tokens : kDefaultAnswerTokens;
  QD_TRY(const int64_t positions,
         cache_positions(options.model.folder, 1, static_cast<int64_t>(longest) + answer_tokens));
  QD_TRY(const LoadedModel loaded, load_model(console, options.model, positions));
  engine::Engine engine(*loaded.model, {}, text.text_streams());
  int64_t right = 0, shown = 0;
  for (size_t i = 0; i < problems.size() && !any_rank(loaded.ranks, interrupted() || console.closed()); ++i) {
    engine::Request request = make_request(std::move(prompts[i]), options, text, *loaded.model);
    if (options.raw || !text.has_chat_template()) request.stop_strings = plain_stop_strings();
    QD_TRY(const bool is_right, show_problem(console, engine, std::move(request), problems[i],
                                             fmt::format("[{}/{}]", i + 1, problems.size()), loaded.ranks));
    right += is_right ? 1 : 0;
    ++shown;
  }
  console.print("{} of {} right. {}\n({})\n", right, shown, speed_text(engine.metrics()), settings_text(loaded));
  if (interrupted()) return interrupted_error("run");
  return {};
}

Status run_run(Console& console, const RunOptions& options) {
  const bool reads_stdin = options.problems.empty() && !options.has_prompt && options.prompt_file.empty();
  if (reads_stdin && ::isatty(STDIN_FILENO) == 1) {
    throw CLI::ValidationError("PROMPT", "give a prompt: as an argument, with --prompt-file, or on stdin");
  }
  return run_on_ranks(console, options.model, [&](Console& own_console, const ModelOptions& model) {
    RunOptions own = options;
    own.model = model;
    return own.problems.empty() ? run_prompt(own_console, own) : run_problems(own_console, own);
  });
}

}  // namespace

void add_run(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("run", "Answer one prompt, or word problems from a file");
  auto options = std::make_shared<RunOptions>();
  add_model_options(*app, options->model);
  add_rank_options(*app, options->model);
  add_grid_options(*app, options->model);
  auto* prompt = app->add_option("PROMPT", options->prompt, "The prompt; stdin when there is none")->type_name("");
  auto* file = app->add_option("--prompt-file", options->prompt_file, "Read the prompt from FILE ('-': stdin)")
                   ->type_name("FILE")
                   ->excludes(prompt);
  auto* problems =
      app->add_option("--problems", options->problems, "Answer problems of a GSM8K or MMLU-Pro file instead")
          ->type_name("FILE")
          ->excludes(prompt)
          ->excludes(file);
  app->add_option("--count", options->count, "How many of them")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->needs(problems);
  app->add_option("--system", options->system, "System message")->type_name("TEXT");
  app->add_flag("--raw", options->raw, "Continue the prompt as plain text, without the chat template");
  app->add_flag("--json", options->as_json, "Print one JSON object at the end")->excludes(problems);
  add_sampling_options(*app, options->sampling);
  commands.push_back({app, [options, prompt](Console& console) {
                        options->has_prompt = prompt->count() > 0;
                        return run_run(console, *options);
                      }});
}

}  // namespace quadrille::cli
