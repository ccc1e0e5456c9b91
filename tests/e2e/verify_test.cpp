// SPDX-License-Identifier: Apache-2.0
// `quadrille verify` as a user runs it: it finds real models equal, and it finds the one changed number of a copy:
// layer, module, expert, rank. Every layer gets equal input, so a fault shows in its own layer and nowhere else.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "e2e/program.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

using nlohmann::json;

// Flips `bits` of the byte at `index` of a tensor's data, in FOLDER/model.safetensors.
void flip(const std::string& folder, const std::string& tensor, size_t index, unsigned bits) {
  const std::string path = folder + "/model.safetensors";
  std::string bytes = read_text(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const json tensors = json::parse(bytes.substr(sizeof header, header));
  ASSERT_TRUE(tensors.contains(tensor)) << tensor;
  const auto begin = tensors[tensor]["data_offsets"][0].get<size_t>();
  char& byte = bytes[sizeof header + header + begin + index];
  byte = static_cast<char>(static_cast<unsigned char>(byte) ^ bits);
  write_text(path, bytes);
}

class Verify : public ::testing::Test {
 protected:
  void SetUp() override {
    model = abacus_path("w4a8");
    if (model.empty()) GTEST_SKIP() << kNoAbacus;
  }

  static std::vector<std::string> arguments(const std::string& folder, const std::vector<std::string>& more) {
    std::vector<std::string> all = {"verify", folder, "-q"};
    all.insert(all.end(), more.begin(), more.end());
    if (std::find(more.begin(), more.end(), "--max-tokens") == more.end()) {
      all.insert(all.end(), {"--max-tokens", "8"});
    }
    return all;
  }
  static Outcome verify(const std::string& folder, const std::vector<std::string>& more) {
    return run_program(arguments(folder, more));
  }
  static json report(const std::string& folder, std::vector<std::string> more, int exit_code) {
    more.emplace_back("--json");
    const Outcome outcome = verify(folder, more);
    EXPECT_EXIT_CODE(outcome, exit_code);
    return parse_json(outcome.out);
  }
  std::string copy_of_model() const {
    using std::filesystem::copy_options;
    std::filesystem::copy(model, copies / "copy", copy_options::recursive | copy_options::overwrite_existing);
    return copies / "copy";
  }

  std::string model;
  TemporaryFolder copies;
};

void expect_equal(const json& report, int ranks) {
  EXPECT_EQ(report["equal"], true) << report;
  EXPECT_EQ(report["ranks"], ranks);
  EXPECT_EQ(report["layers"]["differing_tensors"], 0);
  EXPECT_GT(report["layers"]["tensors"], 150);
  EXPECT_GT(report["layers"]["values"], 50'000);
  EXPECT_GT(report["layers"]["experts_chosen"], 0);
  EXPECT_LE(report["layers"]["experts_chosen"], report["layers"]["experts"]);
  EXPECT_EQ(report["texts"]["beyond_bound"], 0);
  EXPECT_EQ(report["repeats"], true);
  EXPECT_EQ(report["ranks_agree"], true);
}

TEST_F(Verify, RanksOfAbacusAreEqualToOne) {
  for (const int tp : {2, 3}) {
    const json found = report(model, {"--tp", std::to_string(tp)}, 0);
    expect_equal(found, tp);
    // Sums over ranks are not the bits of one rank: the bounds are used, and not far too wide.
    EXPECT_GT(found["layers"]["sums"], 100'000);
    EXPECT_GT(found["layers"]["largest_share_of_a_bound"], 0.5);
    EXPECT_LE(found["layers"]["largest_share_of_a_bound"], 1.0);
    EXPECT_GT(found["largest_logit_difference"], 0.0);
  }
  expect_equal(report(model, {"--tp", "2", "--numerics", "vllm"}, 0), 2);
  expect_equal(report(model, {"--tp", "2", "--round", "f32"}, 0), 2);
  expect_equal(report(abacus_path("bf16"), {"--tp", "2"}, 0), 2);
}

// A shared expert; a norm over all heads.
TEST_F(Verify, RanksOfOtherFamiliesAreEqualToOne) {
  for (const char* name : {"qwen2_moe", "olmoe_clip"}) {
    const std::string folder = data_path(std::string("models/") + name + "/w4a8-g64");
    expect_equal(report(folder, {"--tp", "2"}, 0), 2);
  }
}

// Expert ranks change no bit, so no sum has a bound; in a grid they have those of its tensor-parallel ranks.
TEST_F(Verify, ExpertRanksAreEqualToOne) {
  const json spread = report(model, {"--ep", "2"}, 0);
  expect_equal(spread, 2);
  EXPECT_EQ(spread["layers"]["sums"], 0);
  EXPECT_EQ(spread["texts"]["different"].size(), 0u);
  EXPECT_EQ(spread["largest_logit_difference"], 0.0);
  const json grid = report(model, {"--tp", "2", "--ep", "2"}, 0);
  expect_equal(grid, 4);
  EXPECT_GT(grid["layers"]["sums"], 50'000);
}

TEST_F(Verify, FindsAChangedExpertByTheOutputOfItsBlock) {
  const std::string copy = copy_of_model();
  flip(copy, "model.layers.1.mlp.experts.3.down_proj.weight_packed", 100 * 64 + 9, 0x10);
  const json found = report(model, {"--ep", "2", "--other", copy}, 1);
  ASSERT_FALSE(found["layers"]["found"].empty()) << found;
  const json& first = found["layers"]["found"][0];
  EXPECT_EQ(first["layer"], 1);
  EXPECT_EQ(first["module"], "mlp");
  EXPECT_EQ(first["what"], "output");
  EXPECT_EQ(first["column"], 100);
}

TEST_F(Verify, AnswersProblems) {
  const json found =
      report(model, {"--tp", "2", "--problems", abacus_path("gsm8k.jsonl"), "--count", "2", "--max-tokens", "200"}, 0);
  EXPECT_EQ(found["texts"]["count"], 2);
  EXPECT_EQ(found["texts"]["right_one_rank"], found["texts"]["right_ranks"]);
  EXPECT_GT(found["texts"]["right_one_rank"], 0);
}

struct Fault {
  const char* tensor;
  size_t byte;
  unsigned bits;
  int layer;
  const char* module;  // that differs first
  int column;          // the row of the weight
  int rank;            // of 2; -1: seen in the sum of both
};

TEST_F(Verify, FindsTheOneNumberThatWasChanged) {
  const Fault faults[] = {
      // One step of one 4-bit code.
      {"model.layers.2.mlp.experts.10.down_proj.weight_packed", 77 * 64 + 11, 0x01, 2, "mlp.experts.10.down_proj", 77,
       -1},
      {"model.layers.1.mlp.experts.3.gate_proj.weight_packed", 100 * 128 + 9, 0x10, 1, "mlp.experts.3.gate_proj", 100,
       1},
      {"model.layers.0.mlp.experts.9.gate_proj.weight_packed", 31 * 128, 0x10, 0, "mlp.experts.9.gate_proj", 31, 0},
      {"model.layers.3.self_attn.o_proj.weight_packed", 200 * 128 + 40, 0x01, 3, "self_attn.o_proj", 200, -1},
      // A scale of one group, by a sixteenth or less.
      {"model.layers.3.mlp.experts.12.down_proj.weight_scale", 19 * 2, 0x08, 3, "mlp.experts.12.down_proj", 19, -1},
      // The highest bit of the fraction of one bf16 number.
      {"lm_head.weight", (1500 * 256 + 3) * 2, 0x40, -1, "lm_head", 1500, 1},
  };
  for (const Fault& fault : faults) {
    SCOPED_TRACE(fault.tensor);
    const std::string copy = copy_of_model();
    flip(copy, fault.tensor, fault.byte, fault.bits);
    const json found = report(model, {"--tp", "2", "--other", copy}, 1);
    EXPECT_EQ(found["equal"], false);
    ASSERT_FALSE(found["layers"]["found"].empty()) << found;
    const json& first = found["layers"]["found"][0];
    EXPECT_EQ(first["layer"], fault.layer);
    EXPECT_EQ(first["module"], fault.module);
    EXPECT_EQ(first["what"], "output");
    EXPECT_EQ(first["column"], fault.column);
    EXPECT_EQ(first["rank"], fault.rank);
    for (const json& difference : found["layers"]["found"]) EXPECT_EQ(difference["layer"], fault.layer) << difference;
  }
}

TEST_F(Verify, SaysInWordsWhereTheRanksDiffer) {
  const std::string copy = copy_of_model();
  flip(copy, "model.layers.1.mlp.experts.3.gate_proj.weight_packed", 100 * 128 + 9, 0x10);
  const Outcome outcome = verify(model, {"--tp", "2", "--other", copy});
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_NE(outcome.out.find("first: layer 1, mlp.experts.3.gate_proj: output: row "), std::string::npos);
  EXPECT_NE(outcome.out.find(", column 100: one rank has "), std::string::npos);
  EXPECT_NE(outcome.out.find(", rank 1 has "), std::string::npos);
  EXPECT_NE(outcome.out.find("\nDIFFERENT\n"), std::string::npos) << describe(outcome);
  EXPECT_NE(outcome.err.find("2 ranks do not compute what one rank computes"), std::string::npos) << outcome.err;
}

TEST_F(Verify, FindsAChangedSharedExpert) {
  model = data_path("models/qwen2_moe/w4a8-g64");
  const std::string copy = copy_of_model();
  flip(copy, "model.layers.2.mlp.shared_expert.gate_proj.weight_packed", 0, 0x10);
  const json found = report(model, {"--tp", "2", "--other", copy}, 1);
  ASSERT_FALSE(found["layers"]["found"].empty()) << found;
  EXPECT_EQ(found["layers"]["found"][0]["layer"], 2);
  EXPECT_EQ(found["layers"]["found"][0]["module"], "mlp.shared_expert.gate_proj");
  EXPECT_EQ(found["layers"]["found"][0]["rank"], 0);
}

// The cheaper scales of each rank are not those of one rank, and that is where the bits part.
TEST_F(Verify, FindsScalesThatTheRanksDidNotAgreeOn) {
  const json found = report(model, {"--tp", "2", "--split-scales", "local"}, 1);
  ASSERT_FALSE(found["layers"]["found"].empty()) << found;
  const json& first = found["layers"]["found"][0];
  EXPECT_EQ(first["layer"], 0);
  EXPECT_EQ(first["module"], "self_attn.o_proj");
  EXPECT_EQ(first["what"], "input codes");
  bool scales = false, intermediate = false;
  for (const json& difference : found["layers"]["found"]) {
    scales = scales || difference["what"] == "input scale";
    const auto module = difference["module"].get<std::string>();
    intermediate = intermediate || (module.ends_with("down_proj") && difference["what"] == "input codes");
  }
  EXPECT_TRUE(scales);
  EXPECT_TRUE(intermediate);
}

TEST_F(Verify, ProcessesUnderMpirunSayWhatThreadsSay) {
  if (std::system("command -v mpirun > /dev/null 2>&1") != 0) GTEST_SKIP() << "needs mpirun";
  const Outcome threads = verify(model, {"--tp", "2", "--threads", "1"});
  ASSERT_EXIT_OK(threads);
  std::string command = "timeout 120 mpirun -n 2 --oversubscribe --allow-run-as-root '" + program_path() + "'";
  for (const std::string& argument : arguments(model, {"--threads", "1"})) command += " '" + argument + "'";
  command += " < /dev/null > '" + (copies / "out") + "' 2> '" + (copies / "log") + "'";
  if (std::system(command.c_str()) != 0) {
    const std::string log = read_text(copies / "log");
    if (log.find("libquadrille_mpi") != std::string::npos) GTEST_SKIP() << "needs the MPI module: " << log;
    FAIL() << log << read_text(copies / "out");
  }
  EXPECT_EQ(read_text(copies / "out"), threads.out);
}

TEST_F(Verify, WrongUsage) {
  EXPECT_EXIT_CODE(verify(model, {}), 2);
  EXPECT_EXIT_CODE(verify(model, {"--tp", "1"}), 2);
  EXPECT_EXIT_CODE(verify(model, {"--tp", "2", "--prompt", "a", "--problems", "b"}), 2);
  // Two ranks from the eighth GPU on: no host has them.
  const Outcome device = verify(model, {"--tp", "2", "--device", "cuda:7"});
  EXPECT_EXIT_CODE(device, 1);
  EXPECT_TRUE(device.err.find("GPU") != std::string::npos || device.err.find("CUDA") != std::string::npos)
      << device.err;
  EXPECT_EXIT_CODE(verify(model, {"--against", "cpu"}), 2);
  EXPECT_EXIT_CODE(verify(model, {"--against", "cuda", "--tp", "2"}), 2);
  EXPECT_EXIT_CODE(verify(model, {"--against", "gpu"}), 2);
  const Outcome shape = verify(model, {"--tp", "2", "--other", data_path("models/qwen2_moe/w4a8-g64")});
  EXPECT_EXIT_CODE(shape, 2);
  EXPECT_NE(shape.err.find("has another shape than"), std::string::npos) << shape.err;
  const Outcome missing = verify(copies / "none", {"--tp", "2"});
  EXPECT_EXIT_CODE(missing, 1);  // as of every command
  EXPECT_NE(missing.err.find("config.json: cannot be opened"), std::string::npos) << missing.err;
  // The same shape in another form.
  const Outcome other = verify(model, {"--tp", "2", "--other", abacus_path("bf16")});
  EXPECT_EXIT_CODE(other, 1);
  EXPECT_NE(other.err.find("the two models have other layers or formats"), std::string::npos) << other.err;
}

}  // namespace
}  // namespace quadrille::testing
