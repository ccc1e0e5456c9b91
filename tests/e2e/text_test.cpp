// SPDX-License-Identifier: Apache-2.0
// tokenize, detokenize, template: the line protocol, and the golden encodings of the tokenizers in tests/data.
#include <gmock/gmock.h>

#include <filesystem>

#include "e2e/program.h"

namespace quadrille::testing {
namespace {

using ::testing::HasSubstr;

std::vector<nlohmann::json> json_lines(const std::string& text) {
  std::vector<nlohmann::json> values;
  for (const std::string& line : lines_of(text)) values.push_back(parse_json(line));
  return values;
}

class Tokenizers : public ::testing::TestWithParam<std::string> {
 protected:
  std::string folder() const { return data_path("tokenizers/" + GetParam()); }
};

TEST_P(Tokenizers, EncodeAsTheGoldenFile) {
  const auto records = json_lines(read_text(folder() + "/encodings.jsonl"));
  ASSERT_FALSE(records.empty());
  std::string texts, ids;
  for (const auto& record : records) {
    texts += record["text"].dump() + "\n";
    ids += record["ids"].dump() + "\n";
  }
  const Outcome special = run_program({"tokenize", folder()}, {.stdin_text = texts});
  const Outcome plain = run_program({"tokenize", folder(), "--no-special"}, {.stdin_text = texts});
  const Outcome all = run_program({"detokenize", folder()}, {.stdin_text = ids});
  const Outcome skipped = run_program({"detokenize", folder(), "--no-special"}, {.stdin_text = ids});
  for (const Outcome* outcome : {&special, &plain, &all, &skipped}) ASSERT_EXIT_OK(*outcome);
  const auto special_ids = json_lines(special.out), plain_ids = json_lines(plain.out);
  const auto all_texts = json_lines(all.out), skipped_texts = json_lines(skipped.out);
  ASSERT_EQ(special_ids.size(), records.size());
  ASSERT_EQ(plain_ids.size(), records.size());
  ASSERT_EQ(all_texts.size(), records.size());
  ASSERT_EQ(skipped_texts.size(), records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    EXPECT_EQ(special_ids[i], records[i]["ids_special"]) << records[i]["text"];
    EXPECT_EQ(plain_ids[i], records[i]["ids"]) << records[i]["text"];
    EXPECT_EQ(all_texts[i], records[i]["decoded_all"]);
    EXPECT_EQ(skipped_texts[i], records[i]["decoded"]);
  }
}

TEST_P(Tokenizers, RenderAsTheGoldenFile) {
  const std::string path = folder() + "/chat.json";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "this tokenizer has no chat template";
  size_t compared = 0;
  for (const bool prompt : {false, true}) {
    std::string input;
    std::vector<nlohmann::json> expected;
    for (const auto& chat : read_json(path)) {
      if (chat["add_generation_prompt"] != prompt) continue;
      std::vector<std::string> arguments = {"template", folder()};
      if (!prompt) arguments.emplace_back("--no-generation-prompt");
      if (chat.contains("rendered")) {
        input += chat["messages"].dump() + "\n";
        expected.push_back(chat["rendered"]);
      } else {
        const Outcome refused = run_program(arguments, {.stdin_text = chat["messages"].dump() + "\n"});
        EXPECT_EXIT_CODE(refused, 1);
        EXPECT_THAT(refused.err, HasSubstr("stdin, line 1"));
      }
    }
    std::vector<std::string> arguments = {"template", folder()};
    if (!prompt) arguments.emplace_back("--no-generation-prompt");
    const Outcome outcome = run_program(arguments, {.stdin_text = input});
    ASSERT_EXIT_OK(outcome);
    const auto rendered = json_lines(outcome.out);
    EXPECT_EQ(rendered, expected);
    compared += rendered.size();
  }
  EXPECT_GT(compared, 0u);
}

INSTANTIATE_TEST_SUITE_P(Golden, Tokenizers,
                         ::testing::Values("qwen", "sentencepiece", "sentencepiece_metaspace", "neox", "deepseek",
                                           "llama3"));

class LineProtocol : public ::testing::Test {
 protected:
  TemporaryFolder folder;
  const std::string model = make_small_model(folder);
};

TEST_F(LineProtocol, RoundTripsAllCharacters) {
  const nlohmann::json text = "a\n\"\\\t\xE2\x82\xAC \xF0\x9F\x8E\xBB \x01";
  const Outcome ids = run_program({"tokenize", model}, {.stdin_text = text.dump() + "\n"});
  ASSERT_EXIT_OK(ids);
  const Outcome back = run_program({"detokenize", model}, {.stdin_text = ids.out});
  ASSERT_EXIT_OK(back);
  EXPECT_EQ(parse_json(back.out), text);
}

TEST_F(LineProtocol, LastLineNeedsNoNewlineAndBlankLinesAreSkipped) {
  const Outcome outcome = run_program({"tokenize", model}, {.stdin_text = "\"a\"\r\n\n\"b\""});
  ASSERT_EXIT_OK(outcome);
  EXPECT_EQ(outcome.out, "[97]\n[98]\n");
  const Outcome nothing = run_program({"tokenize", model});
  ASSERT_EXIT_OK(nothing);
  EXPECT_EQ(nothing.out, "");
}

TEST_F(LineProtocol, WrongLinesAreNamedAndWhatCameBeforeIsThere) {
  struct Wrong {
    const char* command;
    const char* input;
    const char* expected;
  };
  const Wrong cases[] = {
      {"tokenize", "\"a\"\n[1]\n", "stdin, line 2: expected a JSON string"},
      {"tokenize", "\"a\"\n\"b\n", "stdin, line 2"},
      {"tokenize", "\"a\"\n\"\xFF\"\n", "stdin, line 2"},
      {"detokenize", "[97]\n\"x\"\n", "stdin, line 2: expected a JSON list of token ids"},
      {"detokenize", "[97]\n[1, -3]\n", "stdin, line 2: expected token ids, found '-3'"},
      {"detokenize", "[97]\n[1.5]\n", "expected token ids"},
      {"detokenize", "[97]\n[99999999999]\n", "expected token ids"},
      {"template", "[]\n{}\n", "stdin, line 2: expected a JSON list of messages"},
      {"template", "[]\n[{\"role\": \"user\"}]\n", "stdin, line 2"},
  };
  for (const Wrong& wrong : cases) {
    const Outcome outcome = run_program({wrong.command, model}, {.stdin_text = wrong.input});
    EXPECT_EXIT_CODE(outcome, 1);
    EXPECT_THAT(outcome.err, HasSubstr(wrong.expected)) << wrong.input;
    EXPECT_EQ(lines_of(outcome.out).size(), 1u);
  }
}

TEST_F(LineProtocol, NeedsNoWeights) {
  std::filesystem::remove(model + "/model.safetensors");
  std::filesystem::remove(model + "/config.json");
  EXPECT_EQ(run_program({"tokenize", model}, {.stdin_text = "\"a\"\n"}).out, "[97]\n");
  const Outcome rendered = run_program({"template", model}, {.stdin_text = R"([{"role": "user", "content": "Hi"}])"});
  EXPECT_EQ(parse_json(rendered.out), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(LineProtocol, AClosedPipeEndsQuietly) {
  std::string input;
  for (int i = 0; i < 200000; ++i) input += "\"abcdefgh\"\n";
  RunOptions options;
  options.stdin_text = input;
  options.close_stdout = true;
  options.close_after_bytes = 100;
  const Outcome outcome = run_program({"tokenize", model}, options);
  EXPECT_EXIT_CODE(outcome, 0);
  EXPECT_EQ(outcome.err, "");
}

}  // namespace
}  // namespace quadrille::testing
