// SPDX-License-Identifier: Apache-2.0
// eval perplexity: texts are cut into windows without overlap; every token but a window's first is scored.
#include <algorithm>
#include <chrono>

#include "cli/eval_accuracy.h"
#include "cli/generate.h"
#include "cli/load_model.h"
#include "cli/progress.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kDefaultContext = 2048;

// Windows of at most `context` tokens; a rest of one token has nothing to score and is left out.
std::vector<std::vector<int32_t>> cut_windows(const std::vector<std::vector<int32_t>>& texts, int64_t context) {
  std::vector<std::vector<int32_t>> windows;
  for (const auto& ids : texts) {
    for (size_t begin = 0; begin + 1 < ids.size(); begin += static_cast<size_t>(context)) {
      const size_t end = std::min(ids.size(), begin + static_cast<size_t>(context));
      windows.emplace_back(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                           ids.begin() + static_cast<std::ptrdiff_t>(end));
    }
  }
  return windows;
}

PerplexityReport::Window score(const Answer& answer) {
  PerplexityReport::Window window;
  for (const engine::TokenOutput& token : answer.prompt_tokens) window.nll -= static_cast<double>(token.logprob);
  window.tokens = static_cast<int64_t>(answer.prompt_tokens.size());
  return window;
}

}  // namespace

Result<PerplexityReport> eval_perplexity(Console& console, const EvalOptions& options) {
  QD_TRY(const std::vector<std::string> texts, read_texts(options.data, options.limit));
  QD_TRY(const session::TextModel text, session::TextModel::load(options.model.folder));
  PerplexityReport report;
  std::vector<std::vector<int32_t>> encoded;
  for (const std::string& document : texts) {
    QD_TRY(auto ids, text.encode(document, true));
    encoded.push_back(std::move(ids));
    report.text_bytes += static_cast<int64_t>(document.size());
  }
  QD_TRY(const model::ModelConfig config, model::read_model_config(options.model.folder));
  const int64_t context = std::min(options.context > 0 ? options.context : kDefaultContext, config.max_positions);
  std::vector<std::vector<int32_t>> windows = cut_windows(encoded, context);
  if (windows.empty()) {
    return make_error(ErrorCode::kInvalidData, "{}: expected a text of at least two tokens, found none", options.data);
  }
  QD_TRY(const int64_t positions, cache_positions(options.model.folder, options.batch, context));
  QD_TRY(const LoadedModel loaded, load_model(console, options.model, positions));
  report.model = options.model.folder;
  report.data = options.data;
  report.settings = settings_json(loaded, options.model);
  report.settings["context"] = context;
  report.total_windows = static_cast<int64_t>(windows.size());

  std::vector<engine::Request> requests;
  for (auto& window : windows) {
    engine::Request& request = requests.emplace_back();
    request.prompt = std::move(window);
    request.max_tokens = 0;
    request.prompt_logprobs = 0;
  }
  engine::EngineOptions engine_options;
  engine_options.max_sequences = options.batch;
  engine::Engine engine(*loaded.model, engine_options);
  Progress progress(console, "perplexity", "windows", options.model.quiet);
  std::vector<std::pair<size_t, PerplexityReport::Window>> scored;
  const auto start = std::chrono::steady_clock::now();
  QD_TRY_STATUS(generate_all(
      engine, std::move(requests), options.batch,
      [&](size_t index, const Answer& answer) {
        scored.emplace_back(index, score(answer));
        progress.update(static_cast<int64_t>(scored.size()), report.total_windows);
        return true;
      },
      options.model.ranks));
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  progress.finish();
  // Sums in the order of the text, so that the last digit does not depend on what ended first.
  std::sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [index, window] : scored) report.windows.push_back(window);
  return report;
}

}  // namespace quadrille::cli
