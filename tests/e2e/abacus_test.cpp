// SPDX-License-Identifier: Apache-2.0
// models/abacus answers its held-out problems, and stops doing so when its weights are a little wrong: the whole way
// from the bundled checkpoint to scored text.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "e2e/program.h"
#include "formats/safetensors.h"
#include "formats/safetensors_writer.h"

namespace quadrille::testing {
namespace {

namespace fs = std::filesystem;
using formats::SafetensorsFile;

constexpr int64_t kWordProblems = 50, kChoices = 25;
constexpr const char* kTasks[] = {"gsm8k", "mmlu-pro"};

// The accuracy of the full held-out set that models/abacus states for the W4A8 checkpoint.
double stated_accuracy(const std::string& key) {
  const auto accuracy = read_json(abacus_path("accuracy.json"));
  return accuracy["bf16"]["w4a8 (rounded)"][key].get<double>();
}

// The largest number of right answers that `n` problems miss with a probability below 1e-4, when each is right with
// probability `p`: a sound program falls below it once in ten thousand choices of the subset.
int64_t binomial_bound(int64_t n, double p) {
  double below = 0;  // P(X < k)
  for (int64_t k = 0; k <= n; ++k) {
    const double log_choose = std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0);
    below += std::exp(log_choose + static_cast<double>(k) * std::log(p) + static_cast<double>(n - k) * std::log1p(-p));
    if (below >= 1e-4) return k;
  }
  return n;
}

nlohmann::json evaluate(const std::string& task, const std::string& model, int64_t limit,
                        const std::vector<std::string>& more = {}) {
  TemporaryFolder folder;
  const std::string data = abacus_path(task == "gsm8k" ? "gsm8k.jsonl" : "mmlu_pro.jsonl");
  std::vector<std::string> arguments = {
      "eval", task,           model, "--data", data, "--limit", std::to_string(limit), "--json", folder / "r.json",
      "-q",   "--max-tokens", "320"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  RunOptions options;
  options.timeout_seconds = 800;
  const Outcome outcome = run_program(arguments, options);
  EXPECT_EXIT_CODE(outcome, 0);
  return outcome.exit_code == 0 ? read_json(folder / "r.json") : nlohmann::json{{"correct", -1}, {"count", 0}};
}

class Abacus : public ::testing::Test {
 protected:
  void SetUp() override {
    model = abacus_path("w4a8");
    if (model.empty()) GTEST_SKIP() << kNoAbacus;
  }

  // A copy of the W4A8 folder whose tensors went through `change`.
  std::string faulty_copy(const std::function<void(std::map<std::string, std::vector<std::byte>>&)>& change) {
    const std::string path = folder / "faulty";
    fs::copy(model, path);
    fs::remove(path + "/model.safetensors");
    auto file = SafetensorsFile::open(model + "/model.safetensors");
    EXPECT_TRUE(file);
    std::vector<formats::TensorDeclaration> declarations;
    std::map<std::string, std::vector<std::byte>> tensors;
    for (const auto& [name, tensor] : file->tensors()) {
      declarations.push_back({name, tensor.dtype, tensor.shape});
      tensors[name].assign(tensor.bytes.begin(), tensor.bytes.end());
    }
    change(tensors);
    auto writer = formats::SafetensorsWriter::create(path + "/model.safetensors", declarations, file->metadata());
    EXPECT_TRUE(writer);
    for (const auto& [name, bytes] : tensors) EXPECT_TRUE(writer->write(name, bytes));
    EXPECT_TRUE(writer->finish());
    return path;
  }

  std::string model;
  TemporaryFolder folder;
};

TEST_F(Abacus, AnswersASubsetAsTheFullSetPromises) {
  const auto words = evaluate("gsm8k", model, kWordProblems);
  EXPECT_EQ(words["count"], kWordProblems);
  EXPECT_GE(words["correct"].get<int64_t>(), binomial_bound(kWordProblems, stated_accuracy("word_problems")));
  EXPECT_EQ(words["forms"]["none"], 0);
  const auto choices = evaluate("mmlu-pro", model, kChoices);
  EXPECT_EQ(choices["count"], kChoices);
  EXPECT_GE(choices["correct"].get<int64_t>(), binomial_bound(kChoices, stated_accuracy("multiple_choice")));
}

TEST_F(Abacus, TheTextsDependNeitherOnTheTableNorOnTheBatchNorOnThreads) {
  const auto expected = evaluate("gsm8k", model, 8, {"--kernels", "generic", "--batch", "1", "--threads", "1"});
  const auto tables = parse_json(run_program({"version", "--json"}).out)["tables"];
  for (const auto& table : tables) {
    if (!table["available"].get<bool>() || table["by_name_only"].get<bool>()) continue;
    const auto found = evaluate("gsm8k", model, 8, {"--kernels", table["name"], "--batch", "7", "--threads", "3"});
    EXPECT_EQ(found["records"], expected["records"]) << table["name"];
  }
}

TEST_F(Abacus, Bf16AndVllmAnswerToo) {
  const auto vllm = evaluate("gsm8k", model, 20, {"--numerics", "vllm"});
  const auto bf16 = evaluate("gsm8k", abacus_path("bf16"), 20);
  // Both state more than 95 %: the bound of 20 problems at that rate.
  EXPECT_GE(vllm["correct"].get<int64_t>(), binomial_bound(20, 0.95));
  EXPECT_GE(bf16["correct"].get<int64_t>(), binomial_bound(20, 0.95));
}

TEST_F(Abacus, SwappedGateAndUpOfOneLayerDropItBelowHalf) {
  const std::string faulty = faulty_copy([](auto& tensors) {
    int swapped = 0;
    for (auto& [name, bytes] : tensors) {
      const size_t at = name.find(".gate_proj.");
      if (at == std::string::npos || name.find("layers.1.") == std::string::npos) continue;
      auto& up = tensors.at(name.substr(0, at) + ".up_proj." + name.substr(at + 11));
      ASSERT_EQ(up.size(), bytes.size());
      std::swap(up, bytes);
      ++swapped;
    }
    ASSERT_EQ(swapped, 16 * 3) << "packed, scale and shape of sixteen experts";
  });
  const auto words = evaluate("gsm8k", faulty, kWordProblems);
  EXPECT_LT(2 * words["correct"].get<int64_t>(), kWordProblems);
}

TEST_F(Abacus, OneGroupsScalesTimesEightDropItBelowHalf) {
  const std::string faulty = faulty_copy([](auto& tensors) {
    int changed = 0;
    for (auto& [name, bytes] : tensors) {
      if (name.find(".experts.") == std::string::npos || !name.ends_with(".weight_scale")) continue;
      // bf16 [N, G]: the first group of each row; 8 is three more in the exponent.
      const bool is_down = name.find(".down_proj.") != std::string::npos;
      const size_t groups = is_down ? 1 : 2;  // width 128, hidden 256
      for (size_t i = 0; i < bytes.size(); i += 2 * groups) {
        uint16_t scale = 0;
        std::memcpy(&scale, bytes.data() + i, 2);
        scale = static_cast<uint16_t>(scale + (3u << 7));
        std::memcpy(bytes.data() + i, &scale, 2);
      }
      ++changed;
    }
    ASSERT_EQ(changed, 4 * 16 * 3);
  });
  for (const char* task : kTasks) {
    const int64_t limit = std::string(task) == "gsm8k" ? kWordProblems : kChoices;
    EXPECT_LT(2 * evaluate(task, faulty, limit)["correct"].get<int64_t>(), limit) << task;
  }
}

}  // namespace
}  // namespace quadrille::testing
