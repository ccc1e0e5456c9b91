// SPDX-License-Identifier: Apache-2.0
// Every stored line of what the tokenizers library encodes and decodes, for six tokenizers: a part of them from the
// repository, all of them from the golden folder.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "model/tokenizer/tokenizer.h"
#include "support/golden.h"

namespace quadrille::tokenizer {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

const std::vector<std::string> kNames = {"qwen", "sentencepiece", "sentencepiece_metaspace",
                                         "neox", "deepseek",      "llama3"};

std::string stream_text(const Tokenizer& tokenizer, const Ids& ids, bool skip_special_tokens) {
  StreamDecoder stream(tokenizer, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) {
    const std::string part = stream.push(id);
    // Each part is whole characters: none begins in the middle of one.
    EXPECT_FALSE(!part.empty() && (part[0] & 0xC0) == 0x80);
    text += part;
  }
  return text + stream.finish();
}

void check_line(const Tokenizer& tokenizer, const json& line) {
  const auto text = line["text"].get<std::string>();
  const auto ids = line["ids"].get<Ids>();
  SCOPED_TRACE(line["text"].dump());
  const auto encoded = tokenizer.encode(text, false);
  ASSERT_TRUE(encoded.ok()) << encoded.error().message;
  EXPECT_EQ(*encoded, ids);
  EXPECT_EQ(*tokenizer.encode(text, true), line["ids_special"].get<Ids>());
  EXPECT_EQ(*tokenizer.decode(ids, true), line["decoded"].get<std::string>());
  EXPECT_EQ(*tokenizer.decode(ids, false), line["decoded_all"].get<std::string>());
  EXPECT_EQ(stream_text(tokenizer, ids, true), line["decoded"].get<std::string>());
  EXPECT_EQ(stream_text(tokenizer, ids, false), line["decoded_all"].get<std::string>());
  if (!line.contains("prefixes")) return;
  for (size_t i = 0; i < line["prefixes"].size(); ++i)
    EXPECT_EQ(*tokenizer.decode(std::span(ids).first(i + 1), false), line["prefixes"][i].get<std::string>()) << i;
}

// Returns the number of lines.
int check_folder(const std::string& folder) {
  const auto tokenizer = Tokenizer::load(folder);
  EXPECT_TRUE(tokenizer.ok()) << (tokenizer.ok() ? "" : tokenizer.error().message);
  if (!tokenizer) return 0;
  std::ifstream file(folder + "/encodings.jsonl");
  int lines = 0;
  for (std::string line; std::getline(file, line); ++lines) check_line(*tokenizer, json::parse(line));
  return lines;
}

class GoldenTokenizer : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenTokenizer, BundledLines) {
  EXPECT_EQ(check_folder(quadrille::testing::data_path("tokenizers/" + GetParam())), 110);
}

TEST_P(GoldenTokenizer, AllLines) {
  const auto folder = quadrille::testing::golden_path("tokenizers/" + GetParam());
  if (!folder) GTEST_SKIP() << quadrille::testing::kNoGolden;
  EXPECT_GT(check_folder(*folder), 500);
}

TEST_P(GoldenTokenizer, Ids) {
  const auto folder = quadrille::testing::data_path("tokenizers/" + GetParam());
  const auto tokenizer = Tokenizer::load(folder);
  ASSERT_TRUE(tokenizer.ok());
  std::ifstream config_file(folder + "/tokenizer_config.json");
  const json config = json::parse(config_file);
  std::ifstream file(folder + "/tokenizer.json");
  const json stored = json::parse(file);
  int32_t highest = 0;
  for (const auto& [text, id] : stored["model"]["vocab"].items()) {
    highest = std::max(highest, id.get<int32_t>());
    EXPECT_EQ(tokenizer->token_id(text), id.get<int32_t>());
    EXPECT_EQ(tokenizer->token_text(id.get<int32_t>()), text);
  }
  for (const json& token : stored["added_tokens"]) {
    highest = std::max(highest, token["id"].get<int32_t>());
    EXPECT_EQ(tokenizer->token_id(token["content"].get<std::string>()), token["id"].get<int32_t>());
    EXPECT_EQ(tokenizer->is_special(token["id"].get<int32_t>()), token["special"].get<bool>());
  }
  EXPECT_EQ(tokenizer->vocab_size(), highest + 1);
  EXPECT_TRUE(tokenizer->has_token(highest));
  EXPECT_FALSE(tokenizer->has_token(highest + 1));
  EXPECT_FALSE(tokenizer->has_token(-1));
  const auto eos = config["eos_token"].get<std::string>();
  EXPECT_EQ(tokenizer->eos_id(), tokenizer->token_id(eos));
  ASSERT_TRUE(tokenizer->eos_id().has_value());
  EXPECT_EQ(tokenizer->bos_id().has_value(), config["bos_token"].is_string());
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTokenizer, ::testing::ValuesIn(kNames),
                         [](const auto& instance) { return instance.param; });

}  // namespace
}  // namespace quadrille::tokenizer
