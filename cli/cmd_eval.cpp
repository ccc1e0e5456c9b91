// SPDX-License-Identifier: Apache-2.0
// quadrille eval: accuracy on GSM8K and MMLU-Pro files, perplexity of texts; a table and JSON, with standard errors.
#include <memory>

#include "cli/commands.h"
#include "cli/eval_accuracy.h"
#include "cli/json_output.h"
#include "cli/rank_grid.h"
#include "cli/ranks.h"
#include "cli/signals.h"

namespace quadrille::cli {
namespace {

template <typename Report>
Status print_report(Console& console, const EvalOptions& options, const Report& report) {
  if (options.json != "-") {
    console.print("{} on {} ({}, round {}, {})\n\n", report.model, report.data,
                  report.settings["numerics"].template get<std::string>(),
                  report.settings["round"].template get<std::string>(),
                  report.settings["kernels"].template get<std::string>());
    console.write(report_text(report));
  }
  if (!options.json.empty() && !console.muted()) QD_TRY_STATUS(write_json(console, options.json, report_json(report)));
  if (interrupted()) return interrupted_error("eval");
  return {};
}

Status run_eval(Console& console, const EvalOptions& options) {
  if (options.prompt.shots > 0 && options.shots_data.empty()) {
    throw CLI::ValidationError("--shots", "needs --shots-data FILE, which the examples are taken from");
  }
  return run_on_ranks(console, options.model, [&](Console& own_console, const ModelOptions& model) -> Status {
    EvalOptions own = options;
    own.model = model;
    if (own.task == "perplexity") {
      QD_TRY(const PerplexityReport report, eval_perplexity(own_console, own));
      return print_report(own_console, own, report);
    }
    QD_TRY(const AccuracyReport report, eval_accuracy(own_console, own));
    return print_report(own_console, own, report);
  });
}

}  // namespace

void add_eval(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("eval", "Accuracy or perplexity on a local file");
  auto options = std::make_shared<EvalOptions>();
  app->add_option("TASK", options->task, "gsm8k, mmlu-pro or perplexity")
      ->required()
      ->check(CLI::IsMember({"gsm8k", "mmlu-pro", "perplexity"}))
      ->type_name("");
  add_model_options(*app, options->model);
  add_rank_options(*app, options->model);
  add_grid_options(*app, options->model);
  app->add_option("--data", options->data, "JSONL in the published layout; perplexity: text, or JSONL with 'text'")
      ->required()
      ->type_name("FILE");
  app->add_option("--limit", options->limit, "The first N problems only; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--batch", options->batch, "Problems that run at the same time; changes no answer")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app->add_option("--max-tokens", options->max_tokens, "Longest answer; 0: 512, cut to the model's positions")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--context", options->context, "perplexity: tokens a window; 0: 2048, cut to the model's positions")
      ->check(CLI::NonNegativeNumber);
  app->add_option("--shots", options->prompt.shots, "Worked examples in front of each problem")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app->add_option("--shots-data", options->shots_data, "File of the same layout to take them from")->type_name("FILE");
  app->add_option("--system", options->prompt.system, "System message")->type_name("TEXT");
  app->add_flag("--instruct", options->prompt.instruct, "Tell the model in each prompt how to end its answer");
  app->add_flag("--raw", options->prompt.raw, "Plain text, also where the tokenizer has a chat template");
  app->add_option("--json", options->json, "Write the report as JSON to FILE; '-': stdout, instead of the table")
      ->type_name("FILE");
  commands.push_back({app, [options](Console& console) { return run_eval(console, *options); }});
}

}  // namespace quadrille::cli
