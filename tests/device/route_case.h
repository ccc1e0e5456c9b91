// SPDX-License-Identifier: Apache-2.0
// One problem of the router's fused launches in memory of its own, and everything that it writes: shared by the tests
// of route_and_plan and of norm_and_route.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "kernels/api/route_words.h"
#include "moe/device_layer.h"
#include "numerics/bf16.h"

namespace quadrille::testing::routing {

using kernels::Scoring;
using kernels::TokenTile;
using moe::RouterRule;

struct Case {
  RouterRule rule;
  int64_t tokens = 0, k = 0, tile_tokens = 8;
  bool has_bias = false, has_map = false, ties = false, special = false;
};

inline std::string name_of(const Case& c) {
  return fmt::format("{} tokens, {} experts, top {}, k {}, scoring {}, {} of {} groups, tile {}, bias {}, map {}",
                     c.tokens, c.rule.num_experts, c.rule.top_k, c.k, static_cast<int>(c.rule.scoring),
                     c.rule.groups_kept, c.rule.num_groups, c.tile_tokens, c.has_bias, c.has_map);
}

inline RouterRule rule_of(Scoring scoring, int64_t experts, int64_t top_k, int64_t groups = 1, int64_t kept = 1) {
  RouterRule rule;
  rule.scoring = scoring;
  rule.num_experts = experts;
  rule.top_k = top_k;
  rule.num_groups = groups;
  rule.groups_kept = kept;
  return rule;
}

inline std::vector<uint16_t> random_bf16(int64_t count, uint32_t seed, float size) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (uint16_t& v : values) v = numerics::bf16_from_f32(normal(random));
  return values;
}

// Everything that either way writes.
struct Outcome {
  std::vector<uint32_t> logits, weights, status;
  std::vector<int32_t> ids, offsets, route_of_slot, slot_of_route, num_tiles;
  std::vector<TokenTile> tiles;
};

inline void expect_equal(const Outcome& found, const Outcome& expected, const Case& c) {
  EXPECT_EQ(bit_differences(found.logits, expected.logits, c.rule.num_experts), "") << "logits";
  EXPECT_EQ(bit_differences(found.ids, expected.ids, c.rule.top_k), "") << "ids";
  EXPECT_EQ(bit_differences(found.weights, expected.weights, c.rule.top_k), "") << "weights";
  EXPECT_EQ(bit_differences(found.offsets, expected.offsets, 1), "") << "offsets";
  EXPECT_EQ(bit_differences(found.slot_of_route, expected.slot_of_route, c.rule.top_k), "") << "slots";
  EXPECT_EQ(bit_differences(found.route_of_slot, expected.route_of_slot, 1), "") << "routes of slots";
  EXPECT_EQ(found.num_tiles, expected.num_tiles);
  EXPECT_EQ(found.status, expected.status);
  const auto bytes = [](const std::vector<TokenTile>& tiles) {
    const auto* begin = reinterpret_cast<const uint8_t*>(tiles.data());
    return std::vector<uint8_t>(begin, begin + tiles.size() * sizeof(TokenTile));
  };
  EXPECT_EQ(bit_differences(bytes(found.tiles), bytes(expected.tiles), sizeof(TokenTile)), "") << "tiles";
}

// The problem of one launch in memory of its own.
class Launch {
 public:
  Launch(const Case& c, const kernels::DeviceTable& table, device::Stream stream, uint32_t seed)
      : case_(c), table_(table), stream_(stream) {
    const int64_t experts = c.rule.num_experts, routes = c.tokens * c.rule.top_k;
    auto x = random_bf16(c.tokens * c.k, seed, 1.0f);
    auto weight = random_bf16(experts * c.k, seed + 1, 0.05f);
    if (c.ties) std::copy_n(weight.begin(), (experts / 2) * c.k, weight.begin() + (experts - experts / 2) * c.k);
    if (c.special) make_special(&x, &weight);
    kernels::DeviceRouterLogits& l = problem_.logits;
    l.num_tokens = c.tokens;
    l.num_experts = experts;
    l.k = c.k;
    l.x = memory_.copy_of(x, stream);
    l.weight = memory_.copy_of(weight, stream);
    l.logits = memory_.take<float>(c.tokens * experts, 4, stream);
    kernels::DeviceRouteTokens& r = problem_.route;
    r = moe::route_problem(c.rule, c.tokens);
    r.logits = l.logits;
    std::vector<float> bias;
    for (const uint16_t code : random_bf16(experts, seed + 2, 0.5f)) bias.push_back(numerics::bf16_to_f32(code));
    if (c.has_bias) r.correction_bias = memory_.copy_of(bias, stream);
    r.ids = memory_.take<int32_t>(routes, 4, stream);
    r.weights = memory_.take<float>(routes, 4, stream);
    plan_of(c, routes);
    problem_.arrivals = memory_.take<uint32_t>(kernels::kNormAndRouteWords, 4, stream, 0);
  }

  // What a launch overwrites becomes poison again.
  void poison() {
    const int64_t routes = case_.tokens * case_.rule.top_k;
    const auto fill = [&](void* to, int64_t bytes) {
      must(device::fill(to, kPoison, static_cast<size_t>(bytes), stream_));
    };
    fill(problem_.logits.logits, 4 * case_.tokens * case_.rule.num_experts);
    for (void* of_routes :
         {static_cast<void*>(problem_.route.ids), static_cast<void*>(problem_.route.weights),
          static_cast<void*>(problem_.plan.route_of_slot), static_cast<void*>(problem_.plan.slot_of_route)}) {
      fill(of_routes, 4 * routes);
    }
    fill(problem_.plan.offsets, 4 * (problem_.plan.num_experts + 1));
    fill(problem_.plan.num_tiles, 4);
    fill(problem_.plan.tiles, problem_.plan.max_tiles * static_cast<int64_t>(sizeof(TokenTile)));
  }

  void fused(device::Stream stream) { table_.route_and_plan(problem_, stream); }

  // The same rows as the norm of a sum: its problem, in place, and apart for the launch of the router.
  kernels::DeviceAddNorm norm_of_sum(uint32_t seed) {
    const int64_t values = case_.tokens * case_.k;
    auto x = random_bf16(values, seed, 1.0f), update = random_bf16(values, seed + 1, 0.5f);
    if (case_.special) {
      x[static_cast<size_t>(case_.k / 2)] = 0x7fc1;
      if (case_.tokens > 1) update[static_cast<size_t>(case_.k + case_.k / 3)] = 0xff80;
      if (case_.tokens > 2) std::fill_n(x.begin() + 2 * case_.k, case_.k, uint16_t{0});
    }
    kernels::DeviceAddNorm norm;
    norm.num_rows = case_.tokens;
    norm.width = case_.k;
    norm.eps = 1e-6f;
    norm.x = memory_.copy_of(x, stream_);
    norm.update = memory_.copy_of(update, stream_);
    norm.weight = memory_.copy_of(random_bf16(case_.k, seed + 2, 1.0f), stream_);
    norm.normed = memory_.take<uint16_t>(values, 16, stream_);
    norm.act_pitch = (case_.k + 127) / 128 * 128;
    norm.act = memory_.take<uint8_t>(case_.tokens * norm.act_pitch, 16, stream_);
    norm.act_scale = memory_.take<float>(case_.tokens, 4, stream_);
    problem_.logits.x = norm.normed;
    return norm;
  }
  void normed(const kernels::DeviceAddNorm& norm, device::Stream stream) {
    table_.norm_and_route({norm, problem_}, stream);
  }
  uint16_t* rows() { return memory_.take<uint16_t>(case_.tokens * case_.k, 16, stream_); }
  void one_by_one() {
    table_.router_logits(problem_.logits, stream_);
    table_.route_tokens(problem_.route, stream_);
    table_.plan_routes(problem_.plan, stream_);
  }

  Outcome outcome() const {
    const int64_t routes = case_.tokens * case_.rule.top_k;
    Outcome o;
    o.logits = on_host<uint32_t>(problem_.logits.logits, case_.tokens * case_.rule.num_experts, stream_);
    o.weights = on_host<uint32_t>(problem_.route.weights, routes, stream_);
    o.ids = on_host<int32_t>(problem_.route.ids, routes, stream_);
    o.offsets = on_host<int32_t>(problem_.plan.offsets, problem_.plan.num_experts + 1, stream_);
    o.route_of_slot = on_host<int32_t>(problem_.plan.route_of_slot, routes, stream_);
    o.slot_of_route = on_host<int32_t>(problem_.plan.slot_of_route, routes, stream_);
    o.num_tiles = on_host<int32_t>(problem_.plan.num_tiles, 1, stream_);
    o.tiles = on_host<TokenTile>(problem_.plan.tiles, problem_.plan.max_tiles, stream_);
    o.status = on_host<uint32_t>(problem_.plan.status, 1, stream_);
    return o;
  }
  bool no_arrivals() const {
    return on_host<uint32_t>(problem_.arrivals, kernels::kNormAndRouteWords, stream_) ==
           std::vector<uint32_t>(kernels::kNormAndRouteWords);
  }
  std::string harmed() const { return memory_.harmed(stream_); }

 private:
  void make_special(std::vector<uint16_t>* x, std::vector<uint16_t>* weight) const {
    (*x)[static_cast<size_t>(case_.k / 2)] = 0x7fc1;  // the first token: NaN
    if (case_.tokens > 1) (*x)[static_cast<size_t>(case_.k + case_.k / 3)] = 0xff80;
    if (case_.tokens > 2) std::fill_n(x->begin() + 2 * case_.k, case_.k, uint16_t{0});
    if (case_.tokens > 3) std::fill_n(x->begin() + 3 * case_.k, case_.k, uint16_t{0x7f00});
    (*weight)[0] = 0x7f80;
    for (int64_t i = 0; i < case_.k; ++i) weight->at(weight->size() - 1 - static_cast<size_t>(i)) = 0x0001;
  }
  void plan_of(const Case& c, int64_t routes) {
    kernels::PlanRoutes& p = problem_.plan;
    p.num_tokens = c.tokens;
    p.top_k = c.rule.top_k;
    p.num_experts = c.rule.num_experts;
    p.tile_tokens = c.tile_tokens;
    p.ids = problem_.route.ids;
    if (c.has_map) {  // every third expert is here
      std::vector<int32_t> map(static_cast<size_t>(c.rule.num_experts), -1);
      int32_t here = 0;
      for (size_t e = 0; e < map.size(); e += 3) map[e] = here++;
      p.num_experts = here;
      p.map_size = c.rule.num_experts;
      p.expert_map = memory_.copy_of(map, stream_);
    }
    p.offsets = memory_.take<int32_t>(p.num_experts + 1, 4, stream_);
    p.route_of_slot = memory_.take<int32_t>(routes, 4, stream_);
    p.slot_of_route = memory_.take<int32_t>(routes, 4, stream_);
    p.num_tiles = memory_.take<int32_t>(1, 4, stream_);
    p.max_tiles = kernels::max_route_tiles(routes, p.num_experts, p.tile_tokens);
    p.tiles = memory_.take<TokenTile>(p.max_tiles, 16, stream_);
    p.scratch = memory_.take<int32_t>(kernels::plan_scratch_ints(routes, p.num_experts), 4, stream_);
    p.status = memory_.take<uint32_t>(1, 4, stream_, 0);
  }

  Case case_;
  const kernels::DeviceTable& table_;
  device::Stream stream_;
  PoolMemory memory_;
  kernels::RouteAndPlan problem_;
};

inline Case decode_case(int64_t tokens) {
  Case c;
  c.tokens = tokens;
  c.k = 2048;
  c.rule = rule_of(Scoring::kSoftmaxBeforeTopK, 128, 8);
  c.rule.renormalise = true;
  return c;
}

}  // namespace quadrille::testing::routing
