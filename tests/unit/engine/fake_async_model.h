// SPDX-License-Identifier: Apache-2.0
// The fake model as a device has it: steps are enqueued, their tokens drawn where no host sees them, and fetched later.
// A step is computed at its collect() or, by `eager`, at its enqueue(): an engine must not tell. Checks the rules of
// model::AsyncForward and writes down the order of calls.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "fake_model.h"
#include "model/async_forward.h"

namespace quadrille::engine::testing {

class FakeAsyncModel : public FakeModel, public model::AsyncForward {
 public:
  using FakeModel::FakeModel;

  model::AsyncForward* async_forward() override { return is_async ? this : nullptr; }
  int64_t max_async_tokens() const override { return most_tokens; }
  int64_t max_async_sequences() const override { return most_sequences; }
  bool draws() const override { return can_draw; }

  // The host's way.
  Status run(const model::Step& step, std::span<float> logits) override {
    order += 'R';
    rule(flights_.empty(), "run() beside steps in flight");
    choices_.clear();
    return FakeModel::run(step, logits);
  }

  Status enqueue(const model::Step& step, std::span<const int32_t> taken_from,
                 std::span<const kernels::SampleRule> rules) override {
    order += 'E';
    ++enqueues;
    if (enqueues == throw_enqueue_at) throw std::runtime_error("thrown on purpose");
    if (enqueues == fail_enqueue_at) return make_error(ErrorCode::kInvalidData, "refused on purpose");
    rule(static_cast<int>(flights_.size()) < kInFlight, "too many steps in flight");
    rule(static_cast<int64_t>(step.ids.size()) <= most_tokens, "a step of too many tokens");
    rule(static_cast<int64_t>(step.page_table.size()) / step.page_table_stride <= most_sequences, "too many sequences");
    rule(taken_from.empty() || taken_from.size() == step.ids.size(), "sources of some ids");
    rule(rules.empty() || (can_draw && rules.size() == step.logit_rows.size()), "rules of some rows");
    for (const int32_t row : taken_from) rule(row < rows_before_, "an id from a row that is none");
    rows_before_ = static_cast<int32_t>(step.logit_rows.size());
    flights_.push_back(copy_of(step, taken_from, rules));
    most_in_flight = std::max(most_in_flight, num_in_flight());
    if (!eager) return {};
    try {
      compute_all();
    } catch (...) {
      flights_.pop_back();
      throw;
    }
    return {};
  }

  Result<std::span<const int32_t>> collect() override {
    order += 'C';
    rule(!flights_.empty(), "collect() without a step");
    if (flights_.empty()) return make_error(ErrorCode::kInvalidArgument, "nothing in flight");
    if (!flights_.front().is_computed) {
      try {
        compute(flights_.front());
      } catch (...) {
        flights_.pop_front();
        throw;
      }
    }
    const Status status = flights_.front().status;
    collected_ = flights_.front().choices;
    flights_.pop_front();
    if (!status) return status.error();
    return std::span<const int32_t>(collected_);
  }

  int64_t num_in_flight() const { return static_cast<int64_t>(flights_.size()); }

  bool is_async = true, can_draw = true, eager = false;
  int64_t most_tokens = 1 << 20, most_sequences = 1 << 20;
  int64_t enqueues = 0, most_in_flight = 0;
  int64_t fail_enqueue_at = -1, throw_enqueue_at = -1;
  std::string order;  // E: enqueue, C: collect, R: run

 private:
  struct Flight {
    std::vector<int32_t> ids, positions, sequences, page_table, logit_rows, taken_from, choices;
    int64_t stride = 0;
    std::vector<kernels::SampleRule> rules;
    bool is_computed = false;
    Status status;
  };

  template <typename T>
  static std::vector<T> copied(std::span<const T> values) {
    return {values.begin(), values.end()};
  }
  static Flight copy_of(const model::Step& step, std::span<const int32_t> taken_from,
                        std::span<const kernels::SampleRule> rules) {
    Flight flight;
    flight.ids = copied(step.ids);
    flight.positions = copied(step.positions);
    flight.sequences = copied(step.sequences);
    flight.page_table = copied(step.page_table);
    flight.logit_rows = copied(step.logit_rows);
    flight.stride = step.page_table_stride;
    flight.taken_from = copied(taken_from);
    flight.rules = copied(rules);
    return flight;
  }

  void compute_all() {
    for (Flight& flight : flights_) {
      if (!flight.is_computed) compute(flight);
    }
  }

  void compute(Flight& flight) {
    for (size_t t = 0; t < flight.taken_from.size(); ++t) {
      if (flight.taken_from[t] < 0) continue;
      const int32_t id = choices_.at(static_cast<size_t>(flight.taken_from[t]));
      flight.ids[t] = std::max(id, 0);  // behind a row without a token anything will do
    }
    const size_t vocab = static_cast<size_t>(vocab_size()), rows = flight.logit_rows.size();
    std::vector<float> logits(rows * vocab);
    flight.is_computed = true;
    flight.status = FakeModel::run(
        {flight.ids, flight.positions, flight.sequences, flight.page_table, flight.stride, flight.logit_rows}, logits);
    for (size_t r = 0; r < rows; ++r) {
      SamplingParams params;
      uint64_t index = 0;
      if (!flight.rules.empty()) {
        const kernels::SampleRule& rule = flight.rules[r];
        params = {rule.temperature, rule.top_k, rule.top_p, rule.min_p, 1, rule.seed};
        index = rule.index;
      }
      const auto drawn = sampler_.sample({logits.data() + r * vocab, vocab}, params, index, {});
      flight.choices.push_back(drawn.ok() ? *drawn : -1);
    }
    choices_ = flight.choices;
  }

  std::deque<Flight> flights_;
  std::vector<int32_t> choices_, collected_;  // of the step computed last; of the step collected last
  int32_t rows_before_ = 0;
  Sampler sampler_;
};

}  // namespace quadrille::engine::testing
