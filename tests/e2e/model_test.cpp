// SPDX-License-Identifier: Apache-2.0
// The commands that run a model, on the small model of tests/data: outputs, JSON, determinism, golden logits.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "e2e/program.h"
#include "formats/safetensors.h"

namespace quadrille::testing {
namespace {

using formats::SafetensorsFile;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr const char* kLoadOnce[] = {"--threads", "2"};

class SmallModel : public ::testing::Test {
 protected:
  Outcome run(const std::string& command, std::vector<std::string> more, RunOptions options = {}) {
    more.insert(more.begin(), {command, model});
    more.insert(more.end(), std::begin(kLoadOnce), std::end(kLoadOnce));
    return run_program(more, options);
  }
  nlohmann::json run_json(std::vector<std::string> more, RunOptions options = {}) {
    more.emplace_back("--json");
    const Outcome outcome = run("run", std::move(more), std::move(options));
    EXPECT_EXIT_CODE(outcome, 0);
    return parse_json(outcome.out);
  }

  TemporaryFolder folder;
  const std::string model = make_small_model(folder);
};

std::vector<float> floats_of(const SafetensorsFile& file, const std::string& name) {
  const formats::TensorView* tensor = file.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  if (tensor == nullptr) return {};
  EXPECT_EQ(tensor->dtype, formats::DType::kF32);
  std::vector<float> values(tensor->bytes.size() / 4);
  std::memcpy(values.data(), tensor->bytes.data(), 4 * values.size());
  return values;
}

SafetensorsFile open(const std::string& path) {
  auto file = SafetensorsFile::open(path);
  if (!file) throw std::runtime_error(file.error().message);
  return *file;
}

TEST_F(SmallModel, RunStreamsTheTextThatJsonReports) {
  const Outcome streamed = run("run", {"Hello", "--max-tokens", "24", "--ignore-eos"});
  ASSERT_EXIT_OK(streamed);
  const auto json = run_json({"Hello", "--max-tokens", "24", "--ignore-eos"});
  EXPECT_EQ(streamed.out, json["text"].get<std::string>() + "\n");
  EXPECT_EQ(json["ids"].size(), 24u);
  EXPECT_EQ(json["finish"], "length");
  EXPECT_EQ(json["settings"]["numerics"], "exact");
  // <|im_start|> user \n Hello <|im_end|> \n <|im_start|> assistant \n
  EXPECT_EQ(json["prompt_tokens"], 1 + 5 + 5 + 2 + 1 + 10);
  EXPECT_THAT(streamed.err, HasSubstr("tokens/s"));
  EXPECT_EQ(run("run", {"Hello", "--max-tokens", "2", "-q"}).err, "");
}

TEST_F(SmallModel, PromptsByArgumentFileAndStdinAreTheSame) {
  write_text(folder / "prompt.txt", "Hello");
  const std::vector<std::string> limit = {"--max-tokens", "8"};
  const auto expected = run_json({"Hello", "--max-tokens", "8"})["ids"];
  EXPECT_EQ(run_json({"--prompt-file", folder / "prompt.txt", "--max-tokens", "8"})["ids"], expected);
  EXPECT_EQ(run_json({"--max-tokens", "8"}, {.stdin_text = "Hello\n"})["ids"], expected);
  EXPECT_EQ(run_json({"--prompt-file", "-", "--max-tokens", "8"}, {.stdin_text = "Hello"})["ids"], expected);
  const auto raw = run_json({"Hello", "--raw", "--max-tokens", "8"});
  EXPECT_EQ(raw["prompt_tokens"], 5);
}

TEST_F(SmallModel, SamplingIsSeededAndBounded) {
  const std::vector<std::string> hot = {"Hi", "--temperature", "1.5", "--max-tokens", "16", "--ignore-eos"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), hot.begin(), hot.end());
    return run_json(more)["ids"];
  };
  EXPECT_EQ(with({"--seed", "1"}), with({"--seed", "1"}));
  EXPECT_NE(with({"--seed", "1"}), with({"--seed", "2"}));
  // One candidate is left: greedy.
  const auto greedy = run_json({"Hi", "--max-tokens", "16", "--ignore-eos"})["ids"];
  EXPECT_EQ(with({"--top-k", "1"}), greedy);
  EXPECT_EQ(with({"--top-p", "1e-6"}), greedy);
  EXPECT_EQ(with({"--min-p", "1"}), greedy);
}

TEST_F(SmallModel, StopTextEndsTheAnswerBeforeIt) {
  // Hot sampling, so that the nonsense is varied and has an ASCII character.
  const std::vector<std::string> hot = {"Hi", "--temperature", "3", "--max-tokens", "64", "--ignore-eos"};
  const auto whole = run_json(hot)["text"].get<std::string>();
  const auto at = std::find_if(whole.begin(), whole.end(), [](char c) { return c > 32 && c < 127; });
  ASSERT_NE(at, whole.end()) << whole;
  const std::string stop(1, *at);
  auto stopped = hot;
  stopped.insert(stopped.end(), {"--stop", stop});
  const auto cut = run_json(stopped);
  EXPECT_EQ(cut["text"], whole.substr(0, whole.find(stop)));
  EXPECT_EQ(cut["finish"], "stop");
}

TEST_F(SmallModel, EveryTableCanBeNamedAndTheCpuOrderGivesTheSameText) {
  const auto tables = parse_json(run_program({"version", "--json"}).out)["tables"];
  for (const std::string numerics : {"exact", "vllm"}) {
    nlohmann::json expected;
    for (const auto& table : tables) {
      if (!table["available"].get<bool>()) continue;
      const auto name = table["name"].get<std::string>();
      const auto json =
          run_json({"Hi", "--max-tokens", "6", "--ignore-eos", "--kernels", name, "--numerics", numerics});
      EXPECT_EQ(json["settings"]["kernels"], name);
      EXPECT_EQ(json["settings"]["numerics"], numerics);
      EXPECT_EQ(json["ids"].size(), 6u);
      if (table["by_name_only"].get<bool>()) continue;
      if (expected.is_null()) expected = json["ids"];
      EXPECT_EQ(json["ids"], expected) << name;
    }
  }
  EXPECT_EQ(run_json({"Hi", "--max-tokens", "2", "--round", "f32"})["settings"]["round"], "f32");
  const Outcome refused = run("run", {"Hi", "--kernels", "hopper", "--round", "f32"});
  EXPECT_EXIT_CODE(refused, 1);
  EXPECT_THAT(refused.err, HasSubstr("kernel table 'hopper' has no --round f32"));
}

TEST_F(SmallModel, BadPromptsAreClearErrors) {
  const Outcome invalid = run("run", {"--max-tokens", "2"}, {.stdin_text = "ab\xFF"});
  EXPECT_EXIT_CODE(invalid, 1);
  EXPECT_THAT(invalid.err, HasSubstr("UTF-8"));
  const Outcome empty = run("run", {""});
  EXPECT_EXIT_CODE(empty, 1);
  EXPECT_THAT(empty.err, HasSubstr("prompt is empty"));
  const Outcome huge = run("run", {}, {.stdin_text = std::string(1 << 20, 'a')});
  EXPECT_EXIT_CODE(huge, 1);
  EXPECT_THAT(huge.err, HasSubstr("512")) << "names the positions that the model takes";
}

TEST_F(SmallModel, LogitsMatchTheGoldenFile) {
  const SafetensorsFile golden = open(data_path("models/qwen2_moe/golden-w4a8-g64.safetensors"));
  nlohmann::json ids = {{"sequences", nlohmann::json::array()}};
  const std::vector<std::string> names = {"t7", "t48", "u29"};
  for (const std::string& name : names) {
    const formats::TensorView* tensor = golden.find("ids." + name);
    ASSERT_NE(tensor, nullptr);
    std::vector<int32_t> values(tensor->bytes.size() / 4);
    std::memcpy(values.data(), tensor->bytes.data(), tensor->bytes.size());
    ids["sequences"].push_back(values);
  }
  write_text(folder / "ids.json", ids.dump());
  const Outcome outcome =
      run("logits", {"--ids", folder / "ids.json", "--out", folder / "out.safetensors", "--round", "f32"});
  ASSERT_EXIT_OK(outcome);
  const SafetensorsFile found = open(folder / "out.safetensors");
  EXPECT_EQ(found.metadata().at("round"), "f32");
  for (size_t i = 0; i < names.size(); ++i) {
    const auto logits = floats_of(found, "logits." + std::to_string(i));
    const auto expected = floats_of(golden, "logits_exact." + names[i]);
    ASSERT_EQ(logits.size(), expected.size());
    ASSERT_EQ(found.find("logits." + std::to_string(i))->shape, golden.find("logits_exact." + names[i])->shape);
    const size_t vocab = static_cast<size_t>(found.find("logits." + std::to_string(i))->shape[1]);
    std::vector<float> worst;  // a row
    for (size_t row = 0; row < logits.size() / vocab; ++row) {
      float error = 0;
      for (size_t c = 0; c < vocab; ++c) {
        error = std::max(error, std::abs(logits[row * vocab + c] - expected[row * vocab + c]));
      }
      worst.push_back(error);
    }
    std::nth_element(worst.begin(), worst.begin() + static_cast<std::ptrdiff_t>(worst.size() / 2), worst.end());
    // The golden data's bound for the median row; the bound of every row is tested on the library.
    EXPECT_LT(worst[worst.size() / 2], 1e-3) << names[i];
  }
}

TEST_F(SmallModel, LogitsRefuseWhatIsNoListOfIds) {
  struct Wrong {
    const char* text;
    const char* expected;
  };
  const Wrong cases[] = {
      {"[1, 2]", "expected {\"sequences\": [[id, ...], ...]}"},
      {"{\"sequences\": []}", "'sequences' is empty"},
      {"{\"sequences\": [[1], 2]}", "sequences[1]: expected a list"},
      {"{\"sequences\": [[1, -1]]}", "sequences[0][1]: expected a token id, found '-1'"},
      {"{\"sequences\": [[1, 640]]}", "sequences[0][1] is 640; the vocabulary has 640 tokens"},
      {"{", "ids.json"},
  };
  for (const Wrong& wrong : cases) {
    write_text(folder / "ids.json", wrong.text);
    const Outcome outcome = run("logits", {"--ids", folder / "ids.json", "--out", folder / "out.safetensors"});
    EXPECT_EXIT_CODE(outcome, 1);
    EXPECT_THAT(outcome.err, HasSubstr(wrong.expected));
    EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors"));
    EXPECT_FALSE(std::filesystem::exists(folder / "out.safetensors.partial"));
  }
  nlohmann::json ids = {{"sequences", {std::vector<int>(513, 1)}}};
  write_text(folder / "ids.json", ids.dump());
  const Outcome outcome = run("logits", {"--ids", folder / "ids.json", "--out", folder / "out.safetensors"});
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_THAT(outcome.err, HasSubstr("sequences[0] has 513 tokens; the model takes 512 positions"));
}

TEST_F(SmallModel, EvalReportsATableAndJson) {
  std::string gsm8k, mmlu;
  for (int i = 0; i < 5; ++i) {
    gsm8k += nlohmann::json{{"question", "What is 1 + " + std::to_string(i) + "?"},
                            {"answer", "1 + " + std::to_string(i) + " = 5\n#### 5"}}
                 .dump() +
             "\n";
    mmlu += nlohmann::json{{"question_id", 100 + i},
                           {"question", "Q"},
                           {"options", {"a", "b", "c"}},
                           {"answer", "B"},
                           {"answer_index", 1},
                           {"cot_content", ""},
                           {"category", i % 2 == 0 ? "math" : "law"},
                           {"src", "t"}}
                .dump() +
            "\n";
  }
  write_text(folder / "gsm8k.jsonl", gsm8k);
  write_text(folder / "mmlu.jsonl", mmlu);
  const auto eval = [&](const std::string& task, const std::string& data, std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", task, model, "--data", folder / data, "--max-tokens", "12"});
    return run_program(more);
  };
  const Outcome table = eval("gsm8k", "gsm8k.jsonl", {"--json", folder / "report.json"});
  ASSERT_EXIT_OK(table);
  EXPECT_THAT(table.out, HasSubstr("1 steps"));
  EXPECT_THAT(table.out, HasSubstr("accuracy"));
  const auto report = read_json(folder / "report.json");
  EXPECT_EQ(report["count"], 5);
  EXPECT_EQ(report["complete"], true);
  EXPECT_EQ(report["records"].size(), 5u);
  EXPECT_EQ(report["records"][0]["expected"], "5");
  EXPECT_TRUE(report["standard_error"].is_number());

  // The window changes no answer.
  const auto one = parse_json(eval("mmlu-pro", "mmlu.jsonl", {"--json", "-", "--batch", "1", "-q"}).out);
  const auto four = parse_json(eval("mmlu-pro", "mmlu.jsonl", {"--json", "-", "--batch", "4", "-q"}).out);
  EXPECT_EQ(one["records"], four["records"]);
  EXPECT_EQ(one["by_category"]["math"]["count"], 3);
  EXPECT_EQ(one["records"][4]["id"], "104");
  const auto limited = parse_json(eval("mmlu-pro", "mmlu.jsonl", {"--json", "-", "--limit", "2"}).out);
  EXPECT_EQ(limited["count"], 2);
  // Worked examples make prompts longer; they come from another file or are other questions.
  const auto shots = parse_json(
      eval("gsm8k", "gsm8k.jsonl", {"--json", "-", "--shots", "2", "--shots-data", folder / "gsm8k.jsonl"}).out);
  EXPECT_GT(shots["prompt_tokens"].get<int>(), report["prompt_tokens"].get<int>());
  const Outcome tight = eval("gsm8k", "gsm8k.jsonl", {"--shots", "60", "--shots-data", folder / "gsm8k.jsonl"});
  EXPECT_EXIT_CODE(tight, 0);
}

// Negative log-likelihood of ids[1..] from logits [tokens, vocab], in double.
double nll_of(const std::vector<float>& logits, const std::vector<int32_t>& ids, size_t vocab) {
  double nll = 0;
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    const float* row = logits.data() + t * vocab;
    const double top = *std::max_element(row, row + vocab);
    double sum = 0;
    for (size_t c = 0; c < vocab; ++c) sum += std::exp(row[c] - top);
    nll += top + std::log(sum) - row[ids[t + 1]];
  }
  return nll;
}

TEST_F(SmallModel, PerplexityIsThatOfTheLogits) {
  std::string text;
  for (int i = 0; i < 40; ++i) text += "word " + std::to_string(i * 7919 % 100) + "\n";
  write_text(folder / "text.txt", text);
  const Outcome outcome = run_program(
      {"eval", "perplexity", model, "--data", folder / "text.txt", "--context", "64", "--json", "-", "--batch", "3"});
  ASSERT_EXIT_OK(outcome);
  const auto report = parse_json(outcome.out);
  nlohmann::json ids = {{"sequences", nlohmann::json::array()}};
  std::vector<std::vector<int32_t>> windows;
  for (size_t begin = 0; begin + 1 < text.size(); begin += 64) {
    auto& window = windows.emplace_back();
    for (const char c : text.substr(begin, 64)) window.push_back(static_cast<unsigned char>(c));
    ids["sequences"].push_back(window);
  }
  write_text(folder / "ids.json", ids.dump());
  ASSERT_EXIT_OK(run("logits", {"--ids", folder / "ids.json", "--out", folder / "out.safetensors"}));
  const SafetensorsFile logits = open(folder / "out.safetensors");
  double nll = 0;
  size_t tokens = 0;
  for (size_t i = 0; i < windows.size(); ++i) {
    nll += nll_of(floats_of(logits, "logits." + std::to_string(i)), windows[i], 640);
    tokens += windows[i].size() - 1;
  }
  EXPECT_EQ(report["tokens"], tokens);
  EXPECT_EQ(report["windows"], windows.size());
  // A log-probability is rounded to fp32 once: 2^-24 of a value below 32 a token.
  EXPECT_NEAR(report["nats_per_token"].get<double>(), nll / static_cast<double>(tokens), 32 * std::exp2(-23));
  EXPECT_NEAR(report["perplexity"].get<double>(), std::exp(report["nats_per_token"].get<double>()), 1e-9);
}

TEST_F(SmallModel, BenchReportsRatios) {
  const Outcome outcome =
      run("bench", {"--rounds", "1", "--prefill", "16", "--decode", "2", "--context", "1,40", "--json"});
  ASSERT_EXIT_OK(outcome);
  const auto json = parse_json(outcome.out);
  ASSERT_EQ(json["decode_by_context"].size(), 2u);
  EXPECT_EQ(json["decode"], json["decode_by_context"][0]);
  // The longer context reads the keys and values of 39 more positions, in bf16.
  const double more = json["decode_by_context"][1]["work"].get<double>() - json["decode"]["work"].get<double>();
  const auto config = parse_json(read_text(model + "/config.json"));
  const int64_t head_dim = config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>();
  const int64_t width = config["num_key_value_heads"].get<int64_t>() * head_dim;
  EXPECT_EQ(more, static_cast<double>(39 * 2 * 2 * width * config["num_hidden_layers"].get<int64_t>()));
  for (const char* part : {"decode", "prefill"}) {
    EXPECT_GT(json[part]["tokens_per_second"].get<double>(), 0) << part;
    EXPECT_GT(json[part]["ratio"].get<double>(), 0) << part;
    EXPECT_LE(json[part]["ratio"].get<double>(), 1) << part;
    EXPECT_GT(json[part]["ceiling_per_second"].get<double>(), 1e6) << part;
  }
  EXPECT_EQ(json["decode"]["unit"], "bytes");
  const Outcome both = run("bench", {"--shape", "qwen3-30b-a3b"});
  EXPECT_EXIT_CODE(both, 2);
}

TEST_F(SmallModel, ProblemsShowTheRightAnswerBesideEach) {
  write_text(folder / "p.jsonl",
             "{\"question\": \"How many?\", \"answer\": \"#### 41\"}\n{\"question\": \"And now?\", \"answer\": \"#### "
             "42\"}\n");
  const Outcome outcome = run("run", {"--problems", folder / "p.jsonl", "--count", "2", "--max-tokens", "8"});
  ASSERT_EXIT_OK(outcome);
  EXPECT_THAT(outcome.out, StartsWith("[1/2] How many?"));
  EXPECT_THAT(outcome.out, HasSubstr("[2/2] And now?"));
  EXPECT_THAT(outcome.out, HasSubstr("right answer: 41"));
  EXPECT_THAT(outcome.out, HasSubstr("right answer: 42"));
  EXPECT_THAT(outcome.out, HasSubstr("of 2 right"));
  EXPECT_THAT(outcome.out, HasSubstr("tokens/s"));
}

TEST_F(SmallModel, ChatKeepsItsHistory) {
  const Outcome chat =
      run("chat", {"--max-tokens", "5", "-q", "--ignore-eos"}, {.stdin_text = "One\nTwo\n/clear\nOne\n"});
  ASSERT_EXIT_OK(chat);
  const auto first = run_json({"One", "--max-tokens", "5", "--ignore-eos"});
  const std::string answer = first["text"].get<std::string>() + "\n";
  EXPECT_THAT(chat.out, StartsWith(answer));
  EXPECT_TRUE(chat.out.ends_with(answer)) << "after /clear the first answer comes again";
  EXPECT_GT(chat.out.size(), 2 * answer.size());
}

TEST_F(SmallModel, ChatWithoutATemplateIsRefused) {
  auto config = read_json(model + "/tokenizer_config.json");
  config.erase("chat_template");
  write_text(model + "/tokenizer_config.json", config.dump());
  const Outcome outcome = run("chat", {}, {.stdin_text = "Hi\n"});
  EXPECT_EXIT_CODE(outcome, 1);
  EXPECT_THAT(outcome.err, HasSubstr("no chat template"));
  // run continues the plain text then.
  EXPECT_EQ(run_json({"Hello", "--max-tokens", "2"})["prompt_tokens"], 5);
}

}  // namespace
}  // namespace quadrille::testing
