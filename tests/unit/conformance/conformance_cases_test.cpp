// SPDX-License-Identifier: Apache-2.0
// The covering array covers: every legal pair of values meets, nothing illegal is in it, the same cases every time.
#include "device/conformance_cases.h"

#include <gtest/gtest.h>

#include <set>

namespace quadrille::testing {
namespace {

using PairKey = std::array<int, 4>;

std::set<PairKey> pairs_of(const std::vector<Assignment>& cases) {
  std::set<PairKey> met;
  for (const Assignment& c : cases) {
    for (int a = 0; a < static_cast<int>(c.size()); ++a) {
      for (int b = a + 1; b < static_cast<int>(c.size()); ++b) {
        met.insert({a, c[static_cast<size_t>(a)], b, c[static_cast<size_t>(b)]});
      }
    }
  }
  return met;
}

size_t all_pairs(const std::vector<int>& levels) {
  size_t count = 0;
  for (size_t a = 0; a < levels.size(); ++a) {
    for (size_t b = a + 1; b < levels.size(); ++b) count += static_cast<size_t>(levels[a] * levels[b]);
  }
  return count;
}

TEST(CoveringArray, SmallOneAgainstEnumeration) {
  const std::vector<int> levels{3, 2, 4, 2};
  // Value 0 of factor 0 forbids value 1 of factor 1; then factor 1 = 0 forbids factor 2 = 3, so (0: 0, 2: 3) is
  // illegal although no rule names the two.
  const auto legal = [](const Assignment& a) {
    if (a[0] == 0 && a[1] == 1) return false;
    return !(a[1] == 0 && a[2] == 3);
  };
  std::vector<Assignment> every;
  for (int i = 0; i < 3 * 2 * 4 * 2; ++i) {
    const Assignment a{i % 3, i / 3 % 2, i / 6 % 4, i / 24};
    if (legal(a)) every.push_back(a);
  }
  const auto cases = covering_array(levels, legal);
  for (const Assignment& c : cases) EXPECT_TRUE(legal(c));
  EXPECT_EQ(pairs_of(cases), pairs_of(every));
  EXPECT_LT(cases.size(), every.size());
  const auto illegal = illegal_pairs(levels, legal);
  EXPECT_EQ(illegal.size() + pairs_of(every).size(), all_pairs(levels));
  EXPECT_TRUE(std::any_of(illegal.begin(), illegal.end(), [](const ValuePair& p) {
    return p.factor_a == 0 && p.value_a == 0 && p.factor_b == 2 && p.value_b == 3;
  }));
}

TEST(ConformanceCases, EveryLegalPairMeets) {
  const auto cases = covering_array(factor_levels(), legal_for_test);
  const auto illegal = illegal_pairs(factor_levels(), legal_for_test);
  RecordProperty("cases", static_cast<int>(cases.size()));
  std::printf("%zu cases cover %zu legal pairs; %zu pairs are illegal\n", cases.size(), pairs_of(cases).size(),
              illegal.size());
  for (const Assignment& c : cases) {
    EXPECT_TRUE(legal_for_test(c));
    EXPECT_EQ(std::count(c.begin(), c.end(), kUnset), 0);
  }
  EXPECT_EQ(pairs_of(cases).size() + illegal.size(), all_pairs(factor_levels()));
  for (const ValuePair& p : illegal)
    EXPECT_EQ(pairs_of(cases).count({p.factor_a, p.value_a, p.factor_b, p.value_b}), 0u);
  EXPECT_GE(cases.size(), 100u);
  EXPECT_LE(cases.size(), 140u);
  EXPECT_EQ(cases, covering_array(factor_levels(), legal_for_test)) << "the same cases in every run";
}

// group 128 beside 2880 and 2112; top-k beside fewer experts; a weight on the input beside top-k over 1; half of one
// expert. Nothing else is illegal.
TEST(ConformanceCases, IllegalPairsAreTheKnownOnes) {
  size_t of_groups = 0, of_choices = 0, of_weights = 0, of_test = 0;
  for (const ValuePair& p : illegal_pairs(factor_levels(), legal_for_test)) {
    if (p.factor_a == kShape && p.factor_b == kGroup) {
      ++of_groups;
    } else if (p.factor_a == kExperts && p.factor_b == kTopK) {
      ++of_choices;
    } else if (p.factor_a == kTopK && p.factor_b == kWeightOnInput) {
      ++of_weights;
    } else if (p.factor_a == kExperts && p.factor_b == kRoutingFactor) {
      ++of_test;
    } else {
      ADD_FAILURE() << "factors " << p.factor_a << " and " << p.factor_b;
    }
  }
  EXPECT_EQ(of_groups, 2u);
  EXPECT_EQ(of_choices, 4u + 2u);
  EXPECT_EQ(of_weights, 4u);
  EXPECT_EQ(of_test, 1u);
}

TEST(ConformanceCases, NamesAreUniqueInEachList) {
  for (const auto& cases :
       {covering_cases(), shape_cases(), field_cases(), nonfinite_cases(), sanitize_cases(), guard_cases()}) {
    std::set<std::string> names;
    for (const LayerSpec& spec : cases) EXPECT_TRUE(names.insert(spec.name()).second) << spec.name();
  }
  EXPECT_EQ(shape_cases().size(), 3 * listed_shapes().size());
}

TEST(ConformanceCases, RulesAreLegal) {
  for (const auto& cases :
       {covering_cases(), shape_cases(), field_cases(), nonfinite_cases(), sanitize_cases(), guard_cases()}) {
    for (const LayerSpec& spec : cases) {
      const Status status = moe::check_router_rule(spec.rule());
      EXPECT_TRUE(status) << spec.name() << ": " << status.error().message;
      EXPECT_GE(spec.experts_here(), 1) << spec.name();
      EXPECT_TRUE(spec.group == 0 || (spec.hidden % spec.group == 0 && spec.width % spec.group == 0)) << spec.name();
    }
  }
}

}  // namespace
}  // namespace quadrille::testing
