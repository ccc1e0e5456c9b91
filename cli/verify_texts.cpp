// SPDX-License-Identifier: Apache-2.0
#include "cli/verify_texts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace quadrille::cli {
namespace {

// Of perturbed runs; the deviation estimated from so many is too small by more than kUnderestimate once in a hundred
// (the quantile 0.01 of chi squared with 16 degrees is 5.81: sqrt(16 / 5.81)).
constexpr int kRuns = 16;
constexpr double kUnderestimate = 1.66;

Result<std::vector<float>> last_logits(model::AnyModel& model, const std::vector<int32_t>& ids) {
  const auto last = static_cast<int32_t>(ids.size() - 1);
  return logits_behind(model, ids, {&last, 1});
}

}  // namespace

Parting find_parting(const engine::Request& request, const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  Parting parting;
  const size_t shorter = std::min(a.size(), b.size());
  while (parting.step < shorter && a[parting.step] == b[parting.step]) ++parting.step;
  parting.prefix = request.prompt;
  parting.prefix.insert(parting.prefix.end(), a.begin(), a.begin() + static_cast<std::ptrdiff_t>(parting.step));
  return parting;
}

Result<std::vector<float>> logits_behind(model::Forward& model, const std::vector<int32_t>& ids,
                                         std::span<const int32_t> rows) {
  std::vector<int32_t> pages(static_cast<size_t>(model.num_pages())), positions(ids.size());
  std::iota(pages.begin(), pages.end(), 0);
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<int32_t> sequence(ids.size(), 0);
  std::vector<float> logits(rows.size() * static_cast<size_t>(model.vocab_size()));
  const model::Step step{.ids = ids,
                         .positions = positions,
                         .sequences = sequence,
                         .page_table = pages,
                         .page_table_stride = static_cast<int64_t>(pages.size()),
                         .logit_rows = rows};
  QD_TRY_STATUS(model.run(step, logits));
  return logits;
}

int32_t token_at(const std::vector<int32_t>& ids, size_t step, const engine::Request& request,
                 std::span<const float> logits) {
  if (step < ids.size() || request.stop_ids.empty()) return ids[std::min(step, ids.size() - 1)];
  return *std::max_element(request.stop_ids.begin(), request.stop_ids.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] < logits[static_cast<size_t>(b)];
  });
}

Result<Texts> answer_greedily(model::Forward& model, engine::TextStreamFactory streams,
                              const std::vector<engine::Request>& requests, int64_t batch,
                              parallel::Communicator* ranks) {
  Texts texts;
  texts.text.resize(requests.size());
  texts.ids.resize(requests.size());
  engine::EngineOptions options;
  options.max_sequences = batch;
  engine::Engine engine(model, options, std::move(streams));
  QD_TRY_STATUS(generate_all(
      engine, requests, batch,
      [&](size_t index, Answer answer) {
        texts.text[index] = std::move(answer.text);
        for (const engine::TokenOutput& token : answer.tokens) texts.ids[index].push_back(token.id);
        return true;
      },
      ranks));
  return texts;
}

Result<TextDifference> explain(model::AnyModel& one, const engine::Request& request,
                               const std::vector<int32_t>& ids_one, const std::vector<int32_t>& ids_many, int64_t steps,
                               const SumRules& rules) {
  const auto [step, prefix] = find_parting(request, ids_one, ids_many);
  QD_TRY(const std::vector<float> logits, last_logits(one, prefix));
  TextDifference found;
  found.step = static_cast<int64_t>(step);
  found.one = token_at(ids_one, step, request, logits);
  found.many = token_at(ids_many, step, request, logits);
  const auto a = static_cast<size_t>(found.one), b = static_cast<size_t>(found.many);
  found.margin = static_cast<double>(logits[a]) - logits[b];
  double squares = 0;
  for (int run = 0; run < kRuns; ++run) {
    Perturbation perturbation(rules, static_cast<uint64_t>(run) + 1);
    one.set_observer(&perturbation);
    const auto moved = last_logits(one, prefix);
    one.set_observer(nullptr);
    if (!moved) return moved.error();
    const double change = static_cast<double>((*moved)[a]) - (*moved)[b] - found.margin;
    squares += change * change;
  }
  found.deviation = std::sqrt(squares / kRuns);
  // Hoeffding: independent changes within the bounds that were used exceed t deviations at most 2 exp(-t^2 / 2) often;
  // over every step and every other token together once in a hundred verifications.
  const double chances = static_cast<double>(steps) * static_cast<double>(one.vocab_size());
  found.bound = std::sqrt(2 * std::log(200 * chances)) * kUnderestimate * found.deviation;
  return found;
}

}  // namespace quadrille::cli
