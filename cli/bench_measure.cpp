// SPDX-License-Identifier: Apache-2.0
// Drives Forward directly: one sequence, pages in order, random tokens (so that routing is spread).
#include "cli/bench_measure.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <span>

#include "bench/ceilings.h"
#include "cli/ranks.h"
#include "cli/signals.h"
#include "plan/known_shapes.h"

namespace quadrille::cli {
namespace {

class OneSequence {
 public:
  OneSequence(model::AnyModel& model, uint64_t seed)
      : model_(model), random_(seed), pages_(static_cast<size_t>(model.num_pages())) {
    std::iota(pages_.begin(), pages_.end(), 0);
    logits_.resize(static_cast<size_t>(model.vocab_size()));
  }

  // Seconds of one step with `count` tokens at positions from `begin` on; the logits of the last one.
  Result<double> step(int64_t begin, int64_t count) {
    std::uniform_int_distribution<int32_t> any_token(0, static_cast<int32_t>(model_.vocab_size() - 1));
    std::vector<int32_t> ids(static_cast<size_t>(count)), positions(ids.size());
    for (int32_t& id : ids) id = any_token(random_);
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(begin));
    const std::vector<int32_t> sequences(ids.size(), 0);
    const int32_t last = static_cast<int32_t>(count - 1);
    const model::Step step{.ids = ids,
                           .positions = positions,
                           .sequences = sequences,
                           .page_table = pages_,
                           .page_table_stride = static_cast<int64_t>(pages_.size()),
                           .logit_rows = std::span(&last, 1)};
    const auto start = std::chrono::steady_clock::now();
    QD_TRY_STATUS(model_.run(step, logits_));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  model::AnyModel& model_;
  std::mt19937_64 random_;
  std::vector<int32_t> pages_;
  std::vector<float> logits_;
};

// Adds up over the ranks what each has found.
Status sum_over(parallel::Communicator* ranks, std::span<double> values) {
  if (ranks == nullptr || ranks->size() == 1) return {};
  std::vector<double> all(values.size() * static_cast<size_t>(ranks->size()));
  QD_TRY_STATUS(ranks->all_gather(std::as_bytes(values), std::as_writable_bytes(std::span(all))));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = 0;
    for (size_t at = i; at < all.size(); at += values.size()) values[i] += all[at];
  }
  return {};
}

// So that the probes of all ranks share the machine as their steps do.
Status meet(parallel::Communicator* ranks) {
  return ranks == nullptr ? Status() : ranks->barrier();
}

// The median of `count` decode steps that all have `context` tokens in front of theirs.
Result<double> decode_steps(OneSequence& sequence, parallel::Communicator* ranks, int64_t context, int64_t count) {
  std::vector<double> all;
  for (int64_t i = 0; i < count; ++i) {
    if (any_rank(ranks, interrupted())) return interrupted_error("bench");
    QD_TRY(const double seconds, sequence.step(context, 1));
    all.push_back(seconds);
  }
  return bench::median(all);
}

}  // namespace

double BenchSeries::median_seconds() const {
  return bench::median(seconds);
}
double BenchSeries::reached() const {
  return median_seconds() > 0 ? work / median_seconds() : 0;
}
double BenchSeries::ratio() const {
  return ceiling > 0 ? reached() / ceiling : 0;
}

int64_t bench_positions(const BenchPlan& plan) {
  int64_t positions = plan.prefill_tokens;
  for (const int64_t context : plan.contexts) positions = std::max(positions, context + 1);
  return positions;
}

void fit_contexts(int64_t max_positions, BenchPlan* plan) {
  for (int64_t& context : plan->contexts) context = std::max<int64_t>(0, std::min(context, max_positions - 1));
  plan->contexts.erase(std::unique(plan->contexts.begin(), plan->contexts.end()), plan->contexts.end());
}

Result<BenchResult> measure(model::AnyModel& model, ThreadPool& pool, parallel::Communicator* ranks,
                            const BenchPlan& plan, const std::function<void(int64_t done, int64_t total)>& progress) {
  BenchResult result;
  for (const int64_t context : plan.contexts) result.decode.emplace_back().context = context;
  result.prefill.work = plan::prefill_flops(model.config(), plan.prefill_tokens);
  OneSequence sequence(model, plan.seed);
  bench::Ceilings ceilings(pool);
  const bench::DotUnit unit = bench::dot_unit_of(model.backend());
  // Every position holds keys of its own before its first reading.
  for (int64_t begin = 0; begin < bench_positions(plan); begin += plan.prefill_tokens) {
    if (any_rank(ranks, interrupted())) return interrupted_error("bench");
    QD_TRY(const double unused, sequence.step(begin, std::min(plan.prefill_tokens, bench_positions(plan) - begin)));
    static_cast<void>(unused);
  }
  for (int64_t round = 0; round <= plan.rounds; ++round) {
    progress(round, plan.rounds + 1);
    if (round == 1) ceilings.clear();
    QD_TRY_STATUS(meet(ranks));
    ceilings.probe_dot(unit);
    QD_TRY_STATUS(meet(ranks));
    if (round > 0) {  // the steps above have warmed it up
      QD_TRY(const double prefill_seconds, sequence.step(0, plan.prefill_tokens));
      result.prefill.seconds.push_back(prefill_seconds);
    }
    for (BenchSeries& series : result.decode) {
      QD_TRY_STATUS(meet(ranks));
      ceilings.probe_read();
      QD_TRY_STATUS(meet(ranks));
      QD_TRY(const double decode_seconds, decode_steps(sequence, ranks, series.context, plan.decode_tokens));
      if (round > 0) series.seconds.push_back(decode_seconds);
    }
  }
  double of_ranks[] = {static_cast<double>(model.memory().bytes_read_per_token), ceilings.read_rate(),
                       ceilings.dot_rate()};
  QD_TRY_STATUS(sum_over(ranks, of_ranks));
  const auto [weight_bytes, read_rate, dot_rate] = of_ranks;
  const int64_t bytes_a_value = model.rounding() == kernels::Rounding::kF32 ? 4 : 2;
  // A step that is faster than every probe raises the ceiling: a ratio never exceeds one.
  double fastest = read_rate;
  for (BenchSeries& series : result.decode) {
    series.work = weight_bytes + plan::kv_bytes_read(model.config(), series.context + 1, bytes_a_value);
    fastest = std::max(fastest, series.reached());
  }
  for (BenchSeries& series : result.decode) {
    series.ceiling = fastest;
    series.probe = fastest > read_rate ? "the step itself" : ceilings.best_read_form();
  }
  result.prefill.ceiling = std::max(dot_rate, result.prefill.reached());
  result.prefill.probe = bench::dot_unit_name(unit);
  return result;
}

}  // namespace quadrille::cli
