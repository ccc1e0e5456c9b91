// SPDX-License-Identifier: Apache-2.0
// Conversations as the transformers library renders them with the templates of five tokenizers: text, ids, errors.
#include <gtest/gtest.h>

#include <fstream>

#include "model/tokenizer/tokenizer.h"
#include "support/golden.h"

namespace quadrille::tokenizer {
namespace {

using nlohmann::ordered_json;

void check_record(const Tokenizer& tokenizer, const ordered_json& record) {
  SCOPED_TRACE(record["name"].get<std::string>());
  const auto text = tokenizer.apply_chat_template(record["messages"], record["add_generation_prompt"].get<bool>());
  if (record.contains("error")) {
    ASSERT_FALSE(text.ok());
    EXPECT_EQ(text.error().code, ErrorCode::kInvalidArgument);
    EXPECT_TRUE(text.error().message.ends_with(": " + record["error"].get<std::string>())) << text.error().message;
    return;
  }
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(*text, record["rendered"].get<std::string>());
  EXPECT_EQ(*tokenizer.encode(*text, false), record["ids"].get<std::vector<int32_t>>());
}

class GoldenChat : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenChat, Records) {
  const std::string folder = quadrille::testing::data_path("tokenizers/" + GetParam());
  const auto tokenizer = Tokenizer::load(folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  ASSERT_TRUE(tokenizer->has_chat_template());
  std::ifstream file(folder + "/chat.json");
  const ordered_json records = ordered_json::parse(file);
  EXPECT_EQ(records.size(), 26u);
  for (const ordered_json& record : records) check_record(*tokenizer, record);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenChat,
                         ::testing::Values("qwen", "sentencepiece", "sentencepiece_metaspace", "deepseek", "llama3"),
                         [](const auto& instance) { return instance.param; });

TEST(GoldenChat, WithoutATemplate) {
  const auto tokenizer = Tokenizer::load(quadrille::testing::data_path("tokenizers/neox"));
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_FALSE(tokenizer->has_chat_template());
  const auto text = tokenizer->apply_chat_template(ordered_json::array(), true);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, ErrorCode::kNotFound);
}

}  // namespace
}  // namespace quadrille::tokenizer
