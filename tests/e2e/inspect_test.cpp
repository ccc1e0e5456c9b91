// SPDX-License-Identifier: Apache-2.0
// quadrille inspect on the small model of tests/data: modules, and what each tensor-parallel rank gets.
#include <gmock/gmock.h>

#include <set>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

class Inspect : public ::testing::Test {
 protected:
  TemporaryFolder folder;
  const std::string model = make_small_model(folder);
};

TEST_F(Inspect, ShowsEveryModuleWithItsRule) {
  const Outcome text = run_program({"inspect", model});
  ASSERT_EXIT_OK(text);
  EXPECT_THAT(text.out, HasSubstr("Qwen2MoeForCausalLM"));
  EXPECT_THAT(text.out, HasSubstr("model.layers.*.mlp.experts.*.gate_proj"));
  EXPECT_THAT(text.out, HasSubstr("w4a8 group 64"));
  const Outcome outcome = run_program({"inspect", model, "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  EXPECT_EQ(json["config"]["num_experts"], 6);
  EXPECT_EQ(json["tensor_parallel"].size(), 8u);
  size_t quantised = 0;
  for (const auto& module : json["modules"]) {
    if (module["quantization"] != "w4a8") continue;
    ++quantised;
    EXPECT_EQ(module["group_size"], "64");
    EXPECT_THAT(module["rule"].get<std::string>(), HasSubstr("Linear"));
  }
  // Three layers of q, k, v, o; two of six experts and one shared, one dense: three matrices each.
  EXPECT_EQ(quantised, 3u * 4 + 2 * 7 * 3 + 3);
}

TEST_F(Inspect, ShowsWhatEachRankOfAGridGets) {
  const Outcome text = run_program({"inspect", model, "--ep", "7"});
  ASSERT_EXIT_OK(text);
  EXPECT_THAT(text.out, HasSubstr("none")) << "six experts over seven ranks";
  const auto two = parse_json(run_program({"inspect", model, "--tp", "2", "--json"}).out)["ranks"];
  const auto grid = parse_json(run_program({"inspect", model, "--tp", "2", "--ep", "4", "--json"}).out)["ranks"];
  ASSERT_EQ(grid.size(), 8u);
  uint64_t expert_bytes[2] = {}, common_bytes[2] = {};  // of the tensor-parallel ranks
  for (size_t r = 0; r < 8; ++r) {
    EXPECT_EQ(grid[r]["rank"], r);
    EXPECT_EQ(grid[r]["tensor_rank"], r % 2);
    EXPECT_EQ(grid[r]["expert_rank"], r / 2);
    EXPECT_EQ(grid[r]["layers"], two[r % 2]["layers"]) << "everything but the experts is that of the tensor rank";
  }
  const std::pair<int, int> held[] = {{0, 2}, {2, 4}, {4, 5}, {5, 6}};
  for (size_t e = 0; e < 4; ++e) EXPECT_EQ(grid[2 * e]["held_experts"], nlohmann::json(held[e]));
  // Two experts, less one, is one; the rest is common.
  for (size_t t = 0; t < 2; ++t) {
    expert_bytes[t] = grid[t]["weight_bytes"].get<uint64_t>() - grid[6 + t]["weight_bytes"].get<uint64_t>();
    common_bytes[t] = grid[6 + t]["weight_bytes"].get<uint64_t>() - expert_bytes[t];
    EXPECT_EQ(two[t]["weight_bytes"], common_bytes[t] + 6 * expert_bytes[t]);
  }
}

TEST_F(Inspect, ShowsWhatEachRankGets) {
  const Outcome text = run_program({"inspect", model, "--tp", "3"});
  ASSERT_EXIT_OK(text);
  EXPECT_THAT(text.out, HasSubstr("expert columns"));
  EXPECT_THAT(text.out, HasSubstr("rank 0 adds the biases"));
  const Outcome outcome = run_program({"inspect", model, "--tp", "3", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  ASSERT_EQ(json["ranks"].size(), 3u);
  int64_t next_row = 0, next_head = 0, next_column = 0;
  for (const auto& rank : json["ranks"]) {
    EXPECT_EQ(rank["vocabulary"][0], next_row);
    next_row = rank["vocabulary"][1];
    std::set<int64_t> layers;
    for (const auto& kind : rank["layers"]) layers.insert(kind["layers"].begin(), kind["layers"].end());
    EXPECT_EQ(layers.size(), json["config"]["num_layers"]) << "every layer, once";
    for (const auto& kind : rank["layers"]) {
      if (kind["experts"].is_null()) continue;
      EXPECT_EQ(kind["query_heads"][0], next_head);
      next_head = kind["query_heads"][1];
      EXPECT_EQ(kind["experts"]["columns"], kind["experts"]["down"]["held"]);
      EXPECT_EQ(kind["experts"]["columns"][0], next_column);
      next_column = kind["experts"]["columns"][1];
    }
    EXPECT_EQ(rank["adds_row_parallel_bias"], rank["rank"] == 0);
    EXPECT_GT(rank["weight_bytes"], 0);
    EXPECT_LT(rank["weight_bytes"], json["weight_memory_bytes"]);
  }
  EXPECT_EQ(next_row, json["config"]["vocab_size"]);
  EXPECT_EQ(next_head, json["config"]["num_heads"]);
  EXPECT_EQ(next_column, json["config"]["expert_width"]);
  // One rank is the whole model.
  const auto one = parse_json(run_program({"inspect", model, "--tp", "1", "--json"}).out);
  EXPECT_EQ(one["ranks"][0]["weight_bytes"], one["weight_memory_bytes"]);
  EXPECT_EQ(one["ranks"][0]["kv_bytes_per_position"], one["kv_bytes_per_position"]);
}

TEST_F(Inspect, SaysWhyASizeIsImpossible) {
  for (const bool as_json : {false, true}) {
    std::vector<std::string> arguments = {"inspect", model, "--tp", "7"};
    if (as_json) arguments.emplace_back("--json");
    const Outcome outcome = run_program(arguments);
    EXPECT_EXIT_CODE(outcome, 1);
    EXPECT_THAT(outcome.err, HasSubstr("7 ranks: the number of query heads is 4"));
    EXPECT_THAT(outcome.err, HasSubstr("1..4"));
    EXPECT_EQ(outcome.out, "");
  }
}

}  // namespace
}  // namespace quadrille::testing
