// SPDX-License-Identifier: Apache-2.0
// quadrille plan: table and JSON of shapes and of a folder, and what it refuses.
#include <gmock/gmock.h>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Plan, ShowsEveryGrid) {
  const Outcome text = run_program({"plan", "qwen3-235b-a22b", "--gpus", "8", "--gpu", "h200", "--rates"});
  ASSERT_EXIT_OK(text);
  EXPECT_THAT(text.out, HasSubstr("235.1e9"));
  EXPECT_THAT(text.out, HasSubstr("experts: dispatch"));
  EXPECT_THAT(text.out, HasSubstr("Fewest GPUs that hold it"));
  EXPECT_THAT(text.out, HasSubstr("400 Gb/s InfiniBand"));
  EXPECT_THAT(text.out, HasSubstr("assumed, not measured"));
  EXPECT_THAT(text.out, Not(HasSubstr("not run by this engine")));
  const Outcome outcome = run_program({"plan", "qwen3-235b-a22b", "--gpus", "8", "--gpu", "h200", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  ASSERT_EQ(json["grids"].size(), 4u);
  int best = 0;
  for (const auto& grid : json["grids"]) {
    EXPECT_EQ(grid["tp"].get<int>() * grid["ep"].get<int>(), 8);
    best += grid["best"].get<bool>() ? 1 : 0;
    const auto& rank = grid["rank"];
    EXPECT_EQ(rank["total_bytes"].get<int64_t>(), rank["weight_bytes"].get<int64_t>() +
                                                      rank["kv_bytes"].get<int64_t>() +
                                                      rank["activation_bytes"].get<int64_t>());
    double parts = 0;
    for (const auto& part : grid["decode"]["parts_us"]) parts += part.get<double>();
    EXPECT_NEAR(parts, grid["decode"]["predicted_us"].get<double>(), 1e-6 * parts);
  }
  EXPECT_EQ(best, 1);
  for (const auto& rate : json["link_rates"]) {
    EXPECT_NE(rate["source"], "");
    if (rate["name"] == "host_bandwidth") {
      EXPECT_EQ(rate["basis"], "assumed, not measured");
    }
  }
}

TEST(Plan, PlansWhatTheEngineDoesNotRun) {
  const Outcome outcome = run_program({"plan", "deepseek-v3", "--tp", "8", "--ep", "8", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  EXPECT_EQ(json["gpus"], 64);
  EXPECT_EQ(json["model"]["runs"], false);
  EXPECT_EQ(json["model"]["note"], "not run by this engine yet");
  ASSERT_EQ(json["grids"].size(), 1u);
  EXPECT_EQ(json["grids"][0]["hosts"], 8);
  EXPECT_GT(json["grids"][0]["decode"]["bytes_to_other_hosts"], 0);
}

TEST(Plan, TakesAFolderWithAConfigAlone) {
  const TemporaryFolder folder;
  const std::string model = make_small_model(folder);
  const TemporaryFolder bare;
  write_text(bare / "config.json", read_text(model + "/config.json"));
  const Outcome outcome =
      run_program({"plan", bare.path(), "--gpus", "2", "--context", "64", "--tokens", "4", "--prefill", "8", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  const auto inspected = parse_json(run_program({"inspect", model, "--json"}).out);
  EXPECT_EQ(json["model"]["parameters"], inspected["parameters"]);
  EXPECT_EQ(json["model"]["active_parameters"], inspected["active_parameters"]);
  EXPECT_THAT(json["model"]["weights"].get<std::string>(), HasSubstr("as config.json says"));
}

TEST(Plan, PredictsLayersForAMeasurementToCheck) {
  const Outcome outcome = run_program({"plan", "qwen3-235b-a22b", "--layer-times", "--gpu", "h200", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  ASSERT_EQ(json["times"].size(), 21u) << "three grids, seven numbers of tokens";
  for (const auto& row : json["times"]) {
    const double parts = row["gemm1_us"].get<double>() + row["gemm2_us"].get<double>() + row["rows_us"].get<double>() +
                         row["collectives_us"].get<double>();
    EXPECT_NEAR(row["layer_us"].get<double>(), parts, 1e-6 * parts);
    EXPECT_EQ(row["collectives"].empty(), row["gpus"] == 1);
  }
}

TEST(Plan, SaysWhyItRefuses) {
  const Outcome small = run_program({"plan", "deepseek-v3", "--gpus", "1", "--json"});
  EXPECT_EXIT_CODE(small, 1);
  EXPECT_THAT(small.err, HasSubstr("does not fit on 1 h100"));
  EXPECT_THAT(small.err, HasSubstr("the fewest GPUs that hold it are"));
  EXPECT_EQ(parse_json(small.out)["best"], nullptr);

  const Outcome grid = run_program({"plan", "mixtral-8x7b", "--gpus", "37"});
  EXPECT_EXIT_CODE(grid, 1);
  EXPECT_THAT(grid.err, HasSubstr("no legal grid of 37 GPUs"));
  EXPECT_THAT(grid.err, HasSubstr("the model has 8 experts"));

  const Outcome unknown = run_program({"plan", "nosuch", "--gpus", "2"});
  EXPECT_EXIT_CODE(unknown, 1);
  EXPECT_THAT(unknown.err, HasSubstr("gpt-oss-120b"));

  const Outcome product = run_program({"plan", "olmoe-1b-7b", "--gpus", "8", "--tp", "3"});
  EXPECT_EXIT_CODE(product, 1);
  EXPECT_THAT(product.err, HasSubstr("tp * ep must be the number of GPUs"));

  const Outcome group = run_program({"plan", "gpt-oss-120b", "--group-size", "128"});
  EXPECT_EXIT_CODE(group, 1);
  EXPECT_THAT(group.err, HasSubstr("legal groups"));
  EXPECT_EXIT_CODE(run_program({"plan", "olmoe-1b-7b", "--gpus", "0"}), 2);
}

}  // namespace
}  // namespace quadrille::testing
