// SPDX-License-Identifier: Apache-2.0
// How many experts, tiles and rows tokens give when routing is uniform and tokens choose independently: closed forms,
// no random numbers. Called by the memory and the time of a plan.
#pragma once

#include <cmath>
#include <cstdint>

#include "moe/router.h"

namespace quadrille::plan {

// A token chooses top_k different ones of num_experts: it hits a given one with p = top_k / num_experts, so the rows of
// an expert are binomial over the tokens.
struct UniformRouting {
  double tokens = 0;
  double p = 0;
  static UniformRouting of(const moe::RouterRule& rule, double tokens);

  double rows_per_expert() const { return tokens * p; }
  // Share of the experts that get at least one row: 1 - (1 - p)^tokens.
  double share_hit() const;
  // Expected tiles of `tile` rows that an expert needs: the sum over j of P(rows > j * tile).
  double tiles_per_expert(int64_t tile) const;
};

// Rows of routed experts that expert-parallel ranks get from `tokens` tokens of all ranks.
struct RankLoad {
  double mean = 0;
  double busiest = 0;  // expected largest of all ranks
  double imbalance() const { return mean > 0 ? busiest / mean : 1; }
};
// A token sends a hypergeometric number of routes to a rank that holds some of the experts; over tokens the sum is
// taken as normal. The ranks' loads have a fixed sum, hence the factor sqrt(ep / (ep - 1)). Never more than all tokens
// can send to one rank. Experts as even as possible: the mean is that of a rank with most of them.
RankLoad rank_load(const moe::RouterRule& rule, int ep, int64_t tokens);

// Chance that a token has at least one of its experts on a given rank: 1 - C(E - held, k) / C(E, k).
double share_of_ranks_hit(const moe::RouterRule& rule, int ep);

// Expected largest of n independent standard normal numbers, by integration.
double expected_max_normal(int n);

}  // namespace quadrille::plan
