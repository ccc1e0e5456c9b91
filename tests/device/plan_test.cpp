// SPDX-License-Identifier: Apache-2.0
// plan_routes and plan_masked against the CPU's plan and a tile list made here: every size that changes the launch,
// every spread of routes, ids that are not here, expert maps, and status bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <vector>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/table_test.h"
#include "kernels/api/device_table.h"
#include "moe/plan.h"

namespace quadrille {
namespace {

using kernels::TokenTile;
using testing::must;
using testing::on_host;
using testing::PoolMemory;

enum class Spread { kUniform, kZipf, kAllToOne, kSomeElsewhere, kOneExpertAToken, kNowhere };

struct Routing {
  int64_t tokens, top_k, experts;  // experts of the router
  std::vector<int32_t> ids;
};

Routing make_routing(int64_t tokens, int64_t top_k, int64_t experts, Spread spread, uint32_t seed) {
  Routing r{tokens, top_k, experts, std::vector<int32_t>(tokens * top_k)};
  std::mt19937 random(seed);
  const auto below = [&](int64_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
  for (size_t i = 0; i < r.ids.size(); ++i) {
    int32_t& id = r.ids[i];
    id = below(experts);
    if (spread == Spread::kZipf) id = below(below(experts) + 1);
    if (spread == Spread::kAllToOne) id = static_cast<int32_t>(experts) - 1;
    if (spread == Spread::kSomeElsewhere && below(3) == 0) id = -1;
    if (spread == Spread::kOneExpertAToken && i % top_k != 0) id = r.ids[i - 1];
    if (spread == Spread::kNowhere) id = -1;
  }
  return r;
}

// What the device should make of ids and a map: experts here, and whether one was bad.
struct Resolved {
  std::vector<int32_t> ids;
  bool bad = false;
};
Resolved resolve(const std::vector<int32_t>& ids, const std::vector<int32_t>& map, int64_t experts_here) {
  Resolved resolved;
  const auto known = static_cast<int64_t>(map.empty() ? experts_here : map.size());
  for (int32_t id : ids) {
    const bool inside = id >= 0 && id < known;
    resolved.bad |= !inside && id != -1;
    int32_t here = inside ? (map.empty() ? id : map[id]) : -1;
    if (here < -1 || here >= experts_here) {
      resolved.bad = true;
      here = -1;
    }
    resolved.ids.push_back(here);
  }
  return resolved;
}

std::vector<TokenTile> expected_tiles(const std::vector<int64_t>& first_rows, const std::vector<int64_t>& rows,
                                      int64_t tile_tokens) {
  std::vector<TokenTile> tiles;
  for (size_t e = 0; e < rows.size(); ++e) {
    const auto first_tile = static_cast<int32_t>(tiles.size());
    const auto count = static_cast<int32_t>((rows[e] + tile_tokens - 1) / tile_tokens);
    for (int64_t row = 0; row < rows[e]; row += tile_tokens) {
      tiles.push_back({static_cast<int32_t>(e),
                       static_cast<int32_t>(first_rows[e] + row),
                       static_cast<int32_t>(std::min(tile_tokens, rows[e] - row)),
                       first_tile,
                       count,
                       {0, 0, 0}});
    }
  }
  return tiles;
}

class PlanTest : public testing::TableTest {
 protected:
  int32_t* integers(PoolMemory* memory, int64_t count) const {
    return memory->take<int32_t>(count, sizeof(int32_t), stream());
  }

  // The expected tiles, and poison behind them.
  void expect_tiles(const TokenTile* tiles, int64_t max_tiles, int32_t found_count,
                    const std::vector<TokenTile>& expected) {
    ASSERT_EQ(found_count, static_cast<int32_t>(expected.size()));
    const auto found = on_host<TokenTile>(tiles, max_tiles, stream());
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(std::memcmp(&found[i], &expected[i], sizeof(TokenTile)), 0)
          << "tile " << i << " of " << expected.size() << ": expert " << found[i].expert << ", rows "
          << found[i].first_row << " + " << found[i].num_rows << ", tiles " << found[i].first_tile << " + "
          << found[i].num_tiles << "; expected expert " << expected[i].expert << ", rows " << expected[i].first_row
          << " + " << expected[i].num_rows << ", tiles " << expected[i].first_tile << " + " << expected[i].num_tiles;
    }
    for (int64_t i = static_cast<int64_t>(expected.size()); i < max_tiles; ++i) {
      ASSERT_EQ(found[i].expert, -1) << "tile " << i << " is behind the list and was written";
    }
  }

  void check_routes(const Routing& routing, int64_t tile_tokens, const std::vector<int32_t>& map,
                    int64_t experts_here) {
    const int64_t routes = routing.tokens * routing.top_k;
    const Resolved resolved = resolve(routing.ids, map, experts_here);
    moe::Plan plan;
    must(moe::build_plan(resolved.ids, routing.tokens, routing.top_k, experts_here, &plan));

    PoolMemory memory;
    kernels::PlanRoutes p;
    p.num_tokens = routing.tokens;
    p.top_k = routing.top_k;
    p.num_experts = experts_here;
    p.tile_tokens = tile_tokens;
    p.ids = memory.copy_of(routing.ids, stream());
    p.expert_map = map.empty() ? nullptr : memory.copy_of(map, stream());
    p.map_size = static_cast<int64_t>(map.size());
    p.offsets = integers(&memory, experts_here + 1);
    p.route_of_slot = integers(&memory, routes);
    p.slot_of_route = integers(&memory, routes);
    p.num_tiles = integers(&memory, 1);
    p.max_tiles = kernels::max_route_tiles(routes, experts_here, tile_tokens);
    p.tiles = memory.take<TokenTile>(p.max_tiles, 16, stream());
    p.scratch = integers(&memory, kernels::plan_scratch_ints(routes, experts_here));
    p.status = memory.take<uint32_t>(1, sizeof(uint32_t), stream(), 0);
    table_->plan_routes(p, stream());

    const std::vector<int32_t> expected_offsets(plan.offsets.begin(), plan.offsets.end());
    EXPECT_EQ(testing::bit_differences(on_host<int32_t>(p.offsets, experts_here + 1, stream()), expected_offsets,
                                       experts_here + 1),
              "")
        << "offsets";
    EXPECT_EQ(testing::bit_differences(on_host<int32_t>(p.slot_of_route, routes, stream()), plan.slot_of_route,
                                       routing.top_k),
              "")
        << "slot_of_route";
    EXPECT_EQ(
        testing::bit_differences(on_host<int32_t>(p.route_of_slot, plan.num_slots(), stream()), plan.route_of_slot, 1),
        "")
        << "route_of_slot";
    std::vector<int64_t> rows(experts_here);
    for (int64_t e = 0; e < experts_here; ++e) rows[e] = plan.offsets[e + 1] - plan.offsets[e];
    const int32_t found_count = on_host<int32_t>(p.num_tiles, 1, stream())[0];
    expect_tiles(p.tiles, p.max_tiles, found_count, expected_tiles(plan.offsets, rows, tile_tokens));
    EXPECT_EQ(on_host<uint32_t>(p.status, 1, stream())[0], resolved.bad ? kernels::kStatusBadExpertId : 0u);
    EXPECT_EQ(memory.harmed(stream()), "");
  }

  void check_masked(const std::vector<int32_t>& masked_m, int64_t max_m, int64_t tile_tokens) {
    const auto experts = static_cast<int64_t>(masked_m.size());
    std::vector<int64_t> rows, first_rows;
    bool bad = false;
    for (const int32_t m : masked_m) {
      first_rows.push_back(static_cast<int64_t>(rows.size()) * max_m);
      rows.push_back(std::clamp<int64_t>(m, 0, max_m));
      bad |= m < 0 || m > max_m;
    }
    const int64_t max_tiles = experts * ((max_m + tile_tokens - 1) / tile_tokens);
    PoolMemory memory;
    kernels::PlanMasked p;
    p.num_experts = experts;
    p.max_m = max_m;
    p.tile_tokens = tile_tokens;
    p.masked_m = memory.copy_of(masked_m, stream());
    p.tiles = memory.take<TokenTile>(max_tiles, 16, stream());
    p.num_tiles = integers(&memory, 1);
    p.status = memory.take<uint32_t>(1, sizeof(uint32_t), stream(), 0);
    table_->plan_masked(p, stream());
    const int32_t found_count = on_host<int32_t>(p.num_tiles, 1, stream())[0];
    expect_tiles(p.tiles, max_tiles, found_count, expected_tiles(first_rows, rows, tile_tokens));
    EXPECT_EQ(on_host<uint32_t>(p.status, 1, stream())[0], bad ? kernels::kStatusBadMaskedCount : 0u);
    EXPECT_EQ(memory.harmed(stream()), "");
  }
};

TEST_F(PlanTest, RoutesEqualTheCpuPlanForEverySize) {
  uint32_t seed = 0;
  for (const int64_t tokens : {0, 1, 2, 7, 33, 1024, 4096}) {
    for (const int64_t experts : {1, 4, 8, 60, 64, 128, 130, 256, 512, 513, 1000}) {
      for (const int64_t top_k : {1, 2, 4, 6, 8}) {
        const auto spread = static_cast<Spread>(seed % 5);
        const int64_t tile_tokens = std::vector<int64_t>{8, 16, 64, 128, 1, 200}[seed % 6];
        ++seed;
        SCOPED_TRACE(fmt::format("{} tokens, {} experts, top {}, spread {}, tile {}", tokens, experts, top_k,
                                 static_cast<int>(spread), tile_tokens));
        check_routes(make_routing(tokens, top_k, experts, spread, seed), tile_tokens, {}, experts);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(PlanTest, RoutesEqualTheCpuPlanForEverySpread) {
  for (const Spread spread : {Spread::kUniform, Spread::kZipf, Spread::kAllToOne, Spread::kSomeElsewhere,
                              Spread::kOneExpertAToken, Spread::kNowhere}) {
    for (const int64_t experts : {60, 128, 1500, 5000}) {
      for (const int64_t tokens : {1, 17, 1023, 1025, 20000}) {
        SCOPED_TRACE(fmt::format("{} tokens, {} experts, spread {}", tokens, experts, static_cast<int>(spread)));
        check_routes(make_routing(tokens, 8, experts, spread, 77), 16, {}, experts);
        if (HasFailure()) return;
      }
    }
  }
}

// More chunks than the scan has segments, and more routes than an int16 counts.
TEST_F(PlanTest, ManyTokens) {
  check_routes(make_routing(65536 + 5, 8, 256, Spread::kZipf, 3), 128, {}, 256);
  check_routes(make_routing(131072, 2, 8, Spread::kAllToOne, 3), 64, {}, 8);
}

TEST_F(PlanTest, BadIdsCountAsElsewhereAndSetTheirBit) {
  for (const int64_t tokens : {3, 3000}) {
    for (const int32_t bad : {60, -2, INT32_MIN, INT32_MAX}) {
      Routing routing = make_routing(tokens, 4, 60, Spread::kUniform, 9);
      routing.ids[tokens] = bad;
      routing.ids.back() = bad;
      check_routes(routing, 16, {}, 60);
    }
  }
}

TEST_F(PlanTest, ExpertMapsKeepWhatIsHere) {
  for (const int64_t tokens : {5, 64, 4000}) {
    std::vector<int32_t> map(256, -1);
    for (int32_t e = 0; e < 32; ++e) map[(e * 37 + 5) % 256] = 31 - e;
    check_routes(make_routing(tokens, 8, 256, Spread::kSomeElsewhere, 21), 16, map, 32);
    map[7] = 32;  // names an expert that is not here
    map[8] = -3;
    Routing routing = make_routing(tokens, 8, 256, Spread::kUniform, 22);
    routing.ids[0] = 7;
    routing.ids[1] = 8;
    routing.ids[2] = 256;
    check_routes(routing, 16, map, 32);
  }
}

TEST_F(PlanTest, MaskedLayout) {
  std::mt19937 random(31);
  for (const int64_t experts : {1, 3, 32, 60, 130, 1024, 2500}) {
    for (const int64_t max_m : {1, 7, 64, 300}) {
      std::vector<int32_t> masked_m(experts);
      for (int32_t& m : masked_m) m = static_cast<int32_t>(random() % static_cast<uint32_t>(max_m + 1));
      masked_m.back() = static_cast<int32_t>(max_m);
      SCOPED_TRACE(fmt::format("{} experts of {} rows", experts, max_m));
      check_masked(masked_m, max_m, experts % 2 == 0 ? 16 : 64);
      masked_m.front() = experts % 2 == 0 ? -1 : static_cast<int32_t>(max_m) + 1;
      check_masked(masked_m, max_m, 8);
    }
  }
  check_masked(std::vector<int32_t>(60, 0), 128, 16);
}

}  // namespace
}  // namespace quadrille
