// SPDX-License-Identifier: Apache-2.0
// A model without weights. A slot of a page holds a hash of the whole history up to its position, as keys and values of
// a real model do, and logits are a hash of all slots read back through the page table: a wrong, stale or shared page,
// a wrong position or a page freed too early changes every later answer. It also checks the rules of model::Step.
#pragma once

#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "model/forward.h"

namespace quadrille::engine::testing {

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = a * 0x9E3779B97F4A7C15ull + b + 0x632BE59BD9B4E019ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// What position `position` with token `id` after a history `before` leaves in the cache.
inline uint64_t slot_value(uint64_t before, int32_t id, int64_t position) {
  return mix(mix(before, static_cast<uint64_t>(id)), static_cast<uint64_t>(position));
}

// Logits in [-6, 6) of the state after all slots; `nan_id` after a history that ends with it poisons one logit.
inline void fake_logits(uint64_t state, int32_t last_id, int32_t nan_id, std::span<float> logits) {
  for (size_t v = 0; v < logits.size(); ++v) {
    logits[v] = static_cast<float>(static_cast<double>(mix(state, v) >> 40) * (12.0 / (1 << 24)) - 6.0);
  }
  if (last_id == nan_id) logits[logits.size() / 2] = std::numeric_limits<float>::quiet_NaN();
}

// The logits after `history`, without any page.
inline std::vector<float> logits_after(std::span<const int32_t> history, int64_t vocab, int32_t nan_id = -1) {
  uint64_t slot = 0, state = 0;
  for (size_t p = 0; p < history.size(); ++p) {
    slot = slot_value(slot, history[p], static_cast<int64_t>(p));
    state = mix(state, slot);
  }
  std::vector<float> logits(static_cast<size_t>(vocab));
  fake_logits(state, history.back(), nan_id, logits);
  return logits;
}

class FakeModel : public model::Forward {
 public:
  FakeModel(int64_t vocab, int64_t pages, int64_t positions)
      : vocab_(vocab), positions_(positions), slots_(static_cast<size_t>(pages * kPositions)) {
    for (size_t i = 0; i < slots_.size(); ++i) slots_[i] = mix(0xDEAD, i);
  }

  int64_t vocab_size() const override { return vocab_; }
  int64_t max_positions() const override { return positions_; }
  int64_t num_pages() const override { return static_cast<int64_t>(slots_.size()) / kPositions; }

  Status run(const model::Step& step, std::span<float> logits) override {
    ++runs;
    largest_step = std::max(largest_step, static_cast<int64_t>(step.ids.size()));
    largest_rows = std::max(largest_rows, static_cast<int64_t>(step.logit_rows.size()));
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
    check(step, logits);
    write(step);
    if (runs == throw_at) throw std::runtime_error("thrown on purpose");
    if (runs == fail_at) return make_error(ErrorCode::kInvalidData, "failed on purpose");
    const auto vocab = static_cast<size_t>(vocab_);
    for (size_t r = 0; r < step.logit_rows.size(); ++r) {
      const auto t = static_cast<size_t>(step.logit_rows[r]);
      uint64_t state = 0;
      for (int64_t p = 0; p <= step.positions[t]; ++p) state = mix(state, slots_[slot_index(step, t, p)]);
      fake_logits(state, step.ids[t], nan_id, logits.subspan(r * vocab, vocab));
    }
    return {};
  }

  int64_t runs = 0, largest_step = 0, largest_rows = 0;
  int64_t fail_at = -1, throw_at = -1;  // number of the run that fails
  int32_t nan_id = -1;
  std::chrono::microseconds delay{0};
  std::string broken_rule;  // the first rule of model::Step that was broken

 protected:
  void rule(bool kept, const char* text) {
    if (!kept && broken_rule.empty()) broken_rule = text;
  }

 private:
  static constexpr int64_t kPositions = model::kPagePositions;

  size_t slot_index(const model::Step& step, size_t t, int64_t position) {
    const int64_t page =
        step.page_table[static_cast<size_t>(step.sequences[t] * step.page_table_stride + position / kPositions)];
    if (page < 0 || page >= num_pages()) {
      rule(false, "a position without a page is read");
      return 0;
    }
    return static_cast<size_t>(page * kPositions + position % kPositions);
  }

  void write(const model::Step& step) {
    std::set<size_t> written;
    for (size_t t = 0; t < step.ids.size(); ++t) {
      const int64_t position = step.positions[t];
      const uint64_t before = position == 0 ? 0 : slots_[slot_index(step, t, position - 1)];
      const size_t slot = slot_index(step, t, position);
      rule(written.insert(slot).second, "two tokens of a step share a slot");
      slots_[slot] = slot_value(before, step.ids[t], position);
    }
  }

  void check(const model::Step& step, std::span<float> logits) {
    rule(!step.ids.empty(), "an empty step");
    rule(step.ids.size() == step.positions.size() && step.ids.size() == step.sequences.size(), "lengths differ");
    rule(logits.size() == step.logit_rows.size() * static_cast<size_t>(vocab_), "logits have the wrong size");
    std::map<int32_t, int32_t> last;
    for (size_t t = 0; t < step.ids.size(); ++t) {
      rule(step.ids[t] >= 0 && step.ids[t] < vocab_, "an id outside the vocabulary");
      rule(step.positions[t] >= 0 && step.positions[t] < positions_, "a position outside the model");
      const auto [at, first] = last.try_emplace(step.sequences[t], step.positions[t]);
      rule(first || at->second + 1 == step.positions[t], "positions of a sequence do not ascend by one");
      at->second = step.positions[t];
    }
    for (size_t r = 0; r < step.logit_rows.size(); ++r) {
      rule(step.logit_rows[r] >= 0 && static_cast<size_t>(step.logit_rows[r]) < step.ids.size(), "a row outside");
      rule(r == 0 || step.logit_rows[r - 1] < step.logit_rows[r], "logit rows do not ascend");
    }
  }

  int64_t vocab_, positions_;
  std::vector<uint64_t> slots_;  // [pages, 64]
};

}  // namespace quadrille::engine::testing
