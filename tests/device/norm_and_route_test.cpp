// SPDX-License-Identifier: Apache-2.0
// norm_and_route against add_norm and the steps behind it: equal bits of rows, codes, logits, choices and plan; the
// words back at zero; the same from a graph and with two launches in flight.
#include "device/route_case.h"

namespace quadrille::testing::routing {
namespace {

class NormAndRouteTest : public TableTest {};

struct Rows {
  std::vector<uint16_t> x, normed;
  std::vector<uint8_t> act;
  std::vector<uint32_t> scale;
};
Rows rows_of(const kernels::DeviceAddNorm& p, device::Stream stream) {
  return {on_host<uint16_t>(p.x_out != nullptr ? p.x_out : p.x, p.num_rows * p.width, stream),
          on_host<uint16_t>(p.normed, p.num_rows * p.width, stream),
          on_host<uint8_t>(p.act, p.num_rows * p.act_pitch, stream),
          on_host<uint32_t>(p.act_scale, p.num_rows, stream)};
}

// add_norm and the steps behind it against one launch.
TEST_F(NormAndRouteTest, EqualsItsSteps) {
  uint32_t turn = 0;
  for (const int64_t tokens : {1, 2, 3, 4}) {
    for (const int64_t experts : {1, 7, 60, 128, 130, 256}) {
      for (const int64_t k : {8, 40, 2048, 2880, 8192}) {
        Case c;
        c.tokens = tokens;
        c.k = k;
        c.rule = rule_of(static_cast<Scoring>(turn % 3), experts, std::min<int64_t>(experts, turn % 2 == 0 ? 8 : 5));
        c.has_bias = turn % 3 == 2;
        c.has_map = turn % 7 == 3;
        c.special = turn % 5 == 1;
        ++turn;
        SCOPED_TRACE(name_of(c));
        ASSERT_TRUE(kernels::fits_norm_and_route(tokens, moe::route_problem(c.rule, tokens), k));
        Launch launch(c, *table_, stream(), 11);
        kernels::DeviceAddNorm norm = launch.norm_of_sum(turn);
        kernels::DeviceAddNorm apart = norm;
        launch.poison();
        apart.x_out = launch.rows();
        launch.normed(apart, stream());
        const Outcome found = launch.outcome();
        const Rows found_rows = rows_of(apart, stream());
        launch.poison();
        table_->add_norm(norm, stream());
        launch.one_by_one();
        expect_equal(found, launch.outcome(), c);
        const Rows expected = rows_of(norm, stream());
        EXPECT_EQ(bit_differences(found_rows.x, expected.x, k), "") << "x";
        EXPECT_EQ(bit_differences(found_rows.normed, expected.normed, k), "") << "normed";
        EXPECT_EQ(bit_differences(found_rows.act, expected.act, norm.act_pitch), "") << "codes";
        EXPECT_EQ(bit_differences(found_rows.scale, expected.scale, 1), "") << "scales";
        EXPECT_TRUE(launch.no_arrivals());
        EXPECT_EQ(launch.harmed(), "");
        if (HasFailure()) return;
      }
    }
  }
}

// Two streams, each a chain of launches in a graph of its own: whoever chooses waits for the other CTAs of his launch.
TEST_F(NormAndRouteTest, ReplaysOfTwoGraphsInFlight) {
  const device::OwnedStream other = must(device::OwnedStream::create());
  for (const int64_t tokens : {1, 4}) {
    const Case c = decode_case(tokens);
    SCOPED_TRACE(name_of(c));
    Launch first(c, *table_, stream(), 5), second(c, *table_, other.get(), 6);
    Launch* const both[2] = {&first, &second};
    const device::Stream streams[2] = {stream(), other.get()};
    std::optional<device::Graph> graphs[2];
    Outcome expected[2];
    for (size_t i = 0; i < 2; ++i) {
      kernels::DeviceAddNorm norm = both[i]->norm_of_sum(static_cast<uint32_t>(20 + i));
      norm.x_out = both[i]->rows();
      both[i]->poison();
      both[i]->normed(norm, streams[i]);
      expected[i] = both[i]->outcome();
      both[i]->poison();
      graphs[i].emplace(must(device::Graph::capture(streams[i], [&] {
        for (int launch = 0; launch < 20; ++launch) both[i]->normed(norm, streams[i]);
        return Status();
      })));
    }
    for (int replay = 0; replay < 50; ++replay) {
      for (size_t i = 0; i < 2; ++i) must(graphs[i]->launch(streams[i]));
    }
    for (size_t i = 0; i < 2; ++i) {
      expect_equal(both[i]->outcome(), expected[i], c);
      EXPECT_TRUE(both[i]->no_arrivals());
      EXPECT_EQ(both[i]->harmed(), "");
    }
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace quadrille::testing::routing
