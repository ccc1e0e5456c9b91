// SPDX-License-Identifier: Apache-2.0
// eval gsm8k and eval mmlu-pro: answers every problem greedily through the engine and scores what it finds.
#pragma once

#include <string>

#include "cli/args.h"
#include "cli/console.h"
#include "cli/eval_prompts.h"
#include "cli/eval_report.h"
#include "core/result.h"

namespace quadrille::cli {

struct EvalOptions {
  ModelOptions model;
  std::string task;  // "gsm8k", "mmlu-pro", "perplexity"
  std::string data;
  std::string json;        // "": none, "-": stdout instead of the table
  int64_t limit = 0;       // problems or texts; 0: all
  int64_t batch = 32;      // running at the same time
  int64_t max_tokens = 0;  // of an answer; 0: the task's default
  int64_t context = 0;     // perplexity: tokens a window; 0: 2048, or what the model takes
  PromptOptions prompt;
  std::string shots_data;
};

// On Ctrl-C the report holds what was finished.
Result<AccuracyReport> eval_accuracy(Console& console, const EvalOptions& options);
Result<PerplexityReport> eval_perplexity(Console& console, const EvalOptions& options);

}  // namespace quadrille::cli
