// SPDX-License-Identifier: Apache-2.0
// Greedy: each new case starts with the first pair that is still missing and takes, factor by factor in several random
// orders, the value that meets most missing pairs; the best of the tried cases stays.
#include "device/covering_array.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "device/random_data.h"

namespace quadrille::testing {
namespace {

constexpr int kTrials = 60;

class Pairs {
 public:
  Pairs(std::span<const int> levels, const Legal& legal) : levels_(levels), legal_(legal) {
    first_.assign(levels.size(), 0);
    for (size_t f = 1; f < levels.size(); ++f) first_[f] = first_[f - 1] + levels[f - 1];
    values_ = first_.back() + levels.back();
    missing_.assign(static_cast<size_t>(values_) * static_cast<size_t>(values_), false);
  }

  int num_factors() const { return static_cast<int>(levels_.size()); }
  bool missing(int fa, int va, int fb, int vb) const { return missing_[place(fa, va, fb, vb)]; }
  void set_missing(int fa, int va, int fb, int vb, bool value) {
    missing_[place(fa, va, fb, vb)] = value;
    missing_[place(fb, vb, fa, va)] = value;
  }

  // A complete legal assignment that extends `partial`, by depth-first search.
  bool extends(Assignment& partial, int factor = 0) const {
    if (!legal_(partial)) return false;
    while (factor < num_factors() && partial[static_cast<size_t>(factor)] != kUnset) ++factor;
    if (factor == num_factors()) return true;
    for (int value = 0; value < levels_[static_cast<size_t>(factor)]; ++value) {
      partial[static_cast<size_t>(factor)] = value;
      const bool found = extends(partial, factor + 1);
      partial[static_cast<size_t>(factor)] = kUnset;
      if (found) return true;
    }
    return false;
  }

  // Missing pairs that `value` of `factor` makes with what is set.
  int gain(const Assignment& partial, int factor, int value) const {
    int count = 0;
    for (int f = 0; f < num_factors(); ++f) {
      const int other = partial[static_cast<size_t>(f)];
      if (f != factor && other != kUnset && missing(factor, value, f, other)) ++count;
    }
    return count;
  }
  // Missing pairs that the value makes with any value of an unset factor: the promise of a choice, to break ties.
  int promise(const Assignment& partial, int factor, int value) const {
    int count = 0;
    for (int f = 0; f < num_factors(); ++f) {
      if (f == factor || partial[static_cast<size_t>(f)] != kUnset) continue;
      for (int v = 0; v < levels_[static_cast<size_t>(f)]; ++v) count += missing(factor, value, f, v) ? 1 : 0;
    }
    return count;
  }

  template <typename Visit>
  void for_all(Visit&& visit) const {
    for (int fa = 0; fa < num_factors(); ++fa) {
      for (int fb = fa + 1; fb < num_factors(); ++fb) for_values(fa, fb, visit);
    }
  }

  int levels(int factor) const { return levels_[static_cast<size_t>(factor)]; }

 private:
  template <typename Visit>
  void for_values(int fa, int fb, Visit&& visit) const {
    for (int va = 0; va < levels(fa); ++va) {
      for (int vb = 0; vb < levels(fb); ++vb) visit(ValuePair{fa, va, fb, vb});
    }
  }
  size_t place(int fa, int va, int fb, int vb) const {
    const int a = first_[static_cast<size_t>(fa)] + va, b = first_[static_cast<size_t>(fb)] + vb;
    return static_cast<size_t>(a) * static_cast<size_t>(values_) + static_cast<size_t>(b);
  }

  std::span<const int> levels_;
  const Legal& legal_;
  std::vector<int> first_;
  int values_ = 0;
  std::vector<bool> missing_;
};

Assignment with_pair(const Pairs& pairs, const ValuePair& pair) {
  Assignment partial(static_cast<size_t>(pairs.num_factors()), kUnset);
  partial[static_cast<size_t>(pair.factor_a)] = pair.value_a;
  partial[static_cast<size_t>(pair.factor_b)] = pair.value_b;
  return partial;
}

// The legal value of `factor` with most gain, then most promise, then by a turn that differs from trial to trial.
int best_value(const Pairs& pairs, Assignment& partial, int factor, uint64_t turn) {
  int best = kUnset;
  int best_gain = -1, best_promise = -1;
  const int levels = pairs.levels(factor);
  for (int i = 0; i < levels; ++i) {
    const int value = static_cast<int>((static_cast<uint64_t>(i) + turn) % static_cast<uint64_t>(levels));
    const int gain = pairs.gain(partial, factor, value), promise = pairs.promise(partial, factor, value);
    if (gain < best_gain || (gain == best_gain && promise <= best_promise)) continue;
    partial[static_cast<size_t>(factor)] = value;
    const bool fits = pairs.extends(partial);
    partial[static_cast<size_t>(factor)] = kUnset;
    if (!fits) continue;
    best = value;
    best_gain = gain;
    best_promise = promise;
  }
  QD_CHECK(best != kUnset, "a partial assignment that extends has a next value");
  return best;
}

Assignment complete(const Pairs& pairs, Assignment partial, uint64_t trial) {
  std::vector<int> order(static_cast<size_t>(pairs.num_factors()));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[hash(trial, i) % (i + 1)]);
  for (int factor : order) {
    if (partial[static_cast<size_t>(factor)] != kUnset) continue;
    const int value = best_value(pairs, partial, factor, hash(trial, 100 + static_cast<uint64_t>(factor)));
    partial[static_cast<size_t>(factor)] = value;
  }
  return partial;
}

int newly_met(const Pairs& pairs, const Assignment& assignment) {
  int count = 0;
  for (int f = 0; f < pairs.num_factors(); ++f) count += pairs.gain(assignment, f, assignment[static_cast<size_t>(f)]);
  return count / 2;
}

}  // namespace

std::vector<Assignment> covering_array(std::span<const int> levels, const Legal& legal) {
  Pairs pairs(levels, legal);
  std::vector<ValuePair> open;
  pairs.for_all([&](const ValuePair& pair) {
    Assignment partial = with_pair(pairs, pair);
    if (!pairs.extends(partial)) return;
    pairs.set_missing(pair.factor_a, pair.value_a, pair.factor_b, pair.value_b, true);
    open.push_back(pair);
  });
  std::vector<Assignment> cases;
  while (!open.empty()) {
    Assignment best;
    int best_met = -1;
    for (int trial = 0; trial < kTrials; ++trial) {
      const uint64_t number = cases.size() * kTrials + static_cast<uint64_t>(trial);
      const ValuePair& start = open[hash(number, 7) % open.size()];
      Assignment found = complete(pairs, with_pair(pairs, start), number);
      const int met = newly_met(pairs, found);
      if (met <= best_met) continue;
      best_met = met;
      best = std::move(found);
    }
    for (int a = 0; a < pairs.num_factors(); ++a) {
      for (int b = a + 1; b < pairs.num_factors(); ++b) {
        pairs.set_missing(a, best[static_cast<size_t>(a)], b, best[static_cast<size_t>(b)], false);
      }
    }
    std::erase_if(open,
                  [&](const ValuePair& p) { return !pairs.missing(p.factor_a, p.value_a, p.factor_b, p.value_b); });
    cases.push_back(std::move(best));
  }
  return cases;
}

std::vector<ValuePair> illegal_pairs(std::span<const int> levels, const Legal& legal) {
  const Pairs pairs(levels, legal);
  std::vector<ValuePair> out;
  pairs.for_all([&](const ValuePair& pair) {
    Assignment partial = with_pair(pairs, pair);
    if (!pairs.extends(partial)) out.push_back(pair);
  });
  return out;
}

}  // namespace quadrille::testing
