// SPDX-License-Identifier: Apache-2.0
// Drives Forward directly: one sequence, pages in order, random tokens (so that routing is spread).
#include "cli/bench_measure.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <span>

#include "bench/ceilings.h"
#include "cli/bench_shapes.h"
#include "cli/ranks.h"
#include "cli/signals.h"

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
  return plan.prefill_tokens + plan.decode_tokens;
}

Result<BenchResult> measure(model::AnyModel& model, ThreadPool& pool, parallel::Communicator* ranks,
                            const BenchPlan& plan, const std::function<void(int64_t done, int64_t total)>& progress) {
  const int64_t bytes_a_value = model.rounding() == kernels::Rounding::kF32 ? 4 : 2;
  BenchResult result;
  // A decode step in the middle of the measured ones stands for the length of the context.
  const int64_t context = plan.prefill_tokens + plan.decode_tokens / 2;
  result.prefill.work = prefill_flops(model.config(), plan.prefill_tokens);
  OneSequence sequence(model, plan.seed);
  bench::Ceilings ceilings(pool);
  const bench::DotUnit unit = bench::dot_unit_of(model.backend());
  for (int64_t round = 0; round <= plan.rounds; ++round) {
    progress(round, plan.rounds + 1);
    if (round == 1) ceilings.clear();
    QD_TRY_STATUS(meet(ranks));
    ceilings.probe_dot(unit);
    QD_TRY_STATUS(meet(ranks));
    QD_TRY(const double prefill_seconds, sequence.step(0, plan.prefill_tokens));
    QD_TRY_STATUS(meet(ranks));
    ceilings.probe_read();
    QD_TRY_STATUS(meet(ranks));
    std::vector<double> decode_seconds;
    for (int64_t i = 0; i < plan.decode_tokens; ++i) {
      if (any_rank(ranks, interrupted())) return interrupted_error("bench");
      QD_TRY(const double seconds, sequence.step(plan.prefill_tokens + i, 1));
      decode_seconds.push_back(seconds);
    }
    if (round == 0) continue;
    result.prefill.seconds.push_back(prefill_seconds);
    result.decode.seconds.push_back(bench::median(decode_seconds));
  }
  double of_ranks[] = {static_cast<double>(model.memory().bytes_read_per_token), ceilings.read_rate(),
                       ceilings.dot_rate()};
  QD_TRY_STATUS(sum_over(ranks, of_ranks));
  const auto [weight_bytes, read_rate, dot_rate] = of_ranks;
  result.decode.work = weight_bytes + kv_bytes_read(model.config(), context, bytes_a_value);
  // A step that is faster than every probe raises the ceiling: a ratio never exceeds one.
  result.decode.ceiling = std::max(read_rate, result.decode.reached());
  result.prefill.ceiling = std::max(dot_rate, result.prefill.reached());
  result.prefill.probe = bench::dot_unit_name(unit);
  result.decode.probe = ceilings.best_read_form();
  return result;
}

}  // namespace quadrille::cli
