// SPDX-License-Identifier: Apache-2.0
// The routing rules. Every token is routed by itself, so the split over threads changes no bit.
#include "moe/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/check.h"
#include "numerics/bits.h"
#include "numerics/exp.h"
#include "numerics/lane_sum.h"
#include "numerics/silu.h"

namespace quadrille::moe {
namespace {

constexpr int64_t kTokensPerPart = 16;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// What one thread needs for one token.
struct Scratch {
  explicit Scratch(const RouterRule& rule) : score(rule.num_experts), choice(rule.num_experts) {
    kept.reserve(rule.num_groups);
  }
  std::vector<float> score;   // [num_experts] what the weight is made of
  std::vector<float> choice;  // [num_experts] what decides: score + bias, NaN as -infinity
  std::vector<int32_t> kept;  // chosen groups
};

// The `count` largest of `value(index)` for the indices that `candidate` allows, descending, ties to the lower index.
template <typename Value>
void insert_best(int32_t index, const Value& value, int32_t* best, int64_t count, int64_t* filled) {
  int64_t place = *filled;
  while (place > 0 && value(index) > value(best[place - 1])) --place;
  if (place >= count) return;
  const int64_t last = std::min(*filled, count - 1);
  for (int64_t i = last; i > place; --i) best[i] = best[i - 1];
  best[place] = index;
  *filled = std::min(*filled + 1, count);
}

void softmax(const float* x, int64_t count, float* out) {
  float maximum = kLowest;
  for (int64_t i = 0; i < count; ++i) maximum = x[i] > maximum ? x[i] : maximum;
  for (int64_t i = 0; i < count; ++i) out[i] = numerics::exp_f32(x[i] - maximum);
  const float sum = numerics::lane_sum(out, count);
  for (int64_t i = 0; i < count; ++i) out[i] = out[i] / sum;
}

void score_experts(const RouterRule& rule, const float* correction_bias, const float* logits, Scratch* s) {
  const int64_t count = rule.num_experts;
  switch (rule.scoring) {
    case Scoring::kSoftmaxBeforeTopK:
      softmax(logits, count, s->score.data());
      break;
    case Scoring::kSoftmaxAfterTopK:
      std::copy_n(logits, count, s->score.data());
      break;
    case Scoring::kSigmoid:
      for (int64_t e = 0; e < count; ++e) s->score[e] = numerics::sigmoid(logits[e]);
      break;
  }
  for (int64_t e = 0; e < count; ++e) {
    const float value = correction_bias != nullptr ? s->score[e] + correction_bias[e] : s->score[e];
    s->choice[e] = std::isnan(value) ? kLowest : value;
  }
}

float group_score(const RouterRule& rule, const float* choice) {
  const int64_t size = rule.num_experts / rule.num_groups;
  float first = kLowest, second = kLowest;
  for (int64_t i = 0; i < size; ++i) {
    if (choice[i] > first) {
      second = first;
      first = choice[i];
    } else if (choice[i] > second) {
      second = choice[i];
    }
  }
  if (rule.scoring != Scoring::kSigmoid || size == 1) return first;
  const float sum = first + second;
  return std::isnan(sum) ? kLowest : sum;  // +Inf and -Inf
}

// The groups whose experts may be chosen, ascending.
void keep_groups(const RouterRule& rule, Scratch* s) {
  const int64_t size = rule.num_experts / rule.num_groups;
  std::vector<float> scores(rule.num_groups);
  for (int64_t g = 0; g < rule.num_groups; ++g) scores[g] = group_score(rule, &s->choice[g * size]);
  s->kept.assign(rule.groups_kept, 0);
  int64_t filled = 0;
  for (int32_t g = 0; g < rule.num_groups; ++g) {
    insert_best(
        g, [&](int32_t i) { return scores[i]; }, s->kept.data(), rule.groups_kept, &filled);
  }
  std::sort(s->kept.begin(), s->kept.end());
}

void choose(const RouterRule& rule, Scratch* s, int32_t* ids) {
  keep_groups(rule, s);
  const int64_t size = rule.num_experts / rule.num_groups;
  int64_t filled = 0;
  for (const int32_t group : s->kept) {
    for (int64_t i = 0; i < size; ++i) {
      insert_best(
          static_cast<int32_t>(group * size + i), [&](int32_t e) { return s->choice[e]; }, ids, rule.top_k, &filled);
    }
  }
}

void weigh(const RouterRule& rule, const Scratch& s, const int32_t* ids, float* weights) {
  const int64_t k = rule.top_k;
  for (int64_t j = 0; j < k; ++j) weights[j] = s.score[ids[j]];
  if (rule.scoring == Scoring::kSoftmaxAfterTopK) {
    std::vector<float> chosen(weights, weights + k);
    softmax(chosen.data(), k, weights);
  }
  if (rule.renormalise) {
    const float sum = numerics::lane_sum(weights, k) + rule.renorm_epsilon;
    for (int64_t j = 0; j < k; ++j) weights[j] = weights[j] / sum;
  }
  if (rule.routed_scaling != 1.0f) {
    for (int64_t j = 0; j < k; ++j) weights[j] = weights[j] * rule.routed_scaling;
  }
  for (int64_t j = 0; j < k; ++j) weights[j] = numerics::canonical(weights[j]);
}

}  // namespace

Status check_router_rule(const RouterRule& rule) {
  constexpr int64_t kMostExperts = 65536;
  if (rule.num_experts < 1 || rule.num_experts > kMostExperts) {
    return make_error(ErrorCode::kInvalidArgument, "router: {} experts; legal are 1 to {}", rule.num_experts,
                      kMostExperts);
  }
  if (rule.num_groups < 1 || rule.num_experts % rule.num_groups != 0) {
    return make_error(ErrorCode::kInvalidArgument, "router: {} groups do not divide {} experts", rule.num_groups,
                      rule.num_experts);
  }
  if (rule.groups_kept < 1 || rule.groups_kept > rule.num_groups) {
    return make_error(ErrorCode::kInvalidArgument, "router: {} groups kept; legal are 1 to {}", rule.groups_kept,
                      rule.num_groups);
  }
  const int64_t reachable = rule.num_experts / rule.num_groups * rule.groups_kept;
  if (rule.top_k < 1 || rule.top_k > reachable) {
    return make_error(ErrorCode::kInvalidArgument, "router: {} experts a token; legal are 1 to {}{}", rule.top_k,
                      reachable, rule.num_groups > 1 ? " (the experts of the groups kept)" : "");
  }
  if (rule.weight_on_input && rule.top_k != 1) {
    return make_error(ErrorCode::kInvalidArgument,
                      "router: the weight goes on the input where a token has 1 expert; here it has {}", rule.top_k);
  }
  if (rule.renormalise && rule.scoring == Scoring::kSoftmaxAfterTopK) {
    return make_error(ErrorCode::kInvalidArgument,
                      "router: softmax after top-k sums to 1 already; renormalise belongs to the other scorings");
  }
  return {};
}

void route_tokens(const RouterRule& rule, const float* correction_bias, const float* logits, int64_t num_tokens,
                  int32_t* ids, float* weights, ThreadPool* pool) {
  const Status legal = check_router_rule(rule);
  QD_CHECK(legal.ok(), legal.ok() ? "" : legal.error().message);
  const auto route_part = [&](int64_t part) {
    Scratch scratch(rule);
    const int64_t end = std::min(num_tokens, (part + 1) * kTokensPerPart);
    for (int64_t t = part * kTokensPerPart; t < end; ++t) {
      score_experts(rule, correction_bias, logits + t * rule.num_experts, &scratch);
      choose(rule, &scratch, ids + t * rule.top_k);
      weigh(rule, scratch, ids + t * rule.top_k, weights + t * rule.top_k);
    }
  };
  const int64_t parts = (num_tokens + kTokensPerPart - 1) / kTokensPerPart;
  if (pool != nullptr && parts > 1) {
    pool->run(parts, route_part);
  } else {
    for (int64_t part = 0; part < parts; ++part) route_part(part);
  }
}

}  // namespace quadrille::moe
