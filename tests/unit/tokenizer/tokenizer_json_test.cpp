// SPDX-License-Identifier: Apache-2.0
// Files that lie, and files of kinds that are not read: each a clear error that names file, key and what was found.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "model/tokenizer/tokenizer.h"
#include "support/golden.h"

namespace quadrille::tokenizer {
namespace {

using nlohmann::json;

json small() {
  return json::parse(R"({"version": "1.0", "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

// The error of parsing small() with `patch` merged into it.
Error refused(const json& patch) {
  json file = small();
  file.merge_patch(patch);
  const auto tokenizer = Tokenizer::parse(file.dump(), "dir/tokenizer.json");
  EXPECT_FALSE(tokenizer.ok()) << file.dump();
  return tokenizer.ok() ? Error{} : tokenizer.error();
}

void expect_error(const json& patch, ErrorCode code, const std::vector<std::string>& parts) {
  const Error error = refused(patch);
  EXPECT_EQ(error.code, code) << error.message;
  for (const std::string& part : parts) EXPECT_NE(error.message.find(part), std::string::npos) << error.message;
  EXPECT_TRUE(error.message.starts_with("dir/tokenizer.json")) << error.message;
}

TEST(TokenizerJson, SmallFileWorks) {
  const auto tokenizer = Tokenizer::parse(small().dump(), "small");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(*tokenizer->encode("ab<s>a", false), (std::vector<int32_t>{2, 3, 0}));
  EXPECT_EQ(tokenizer->vocab_size(), 4);
}

TEST(TokenizerJson, OtherKindsAreRefusedByName) {
  const auto code = ErrorCode::kUnsupported;
  expect_error({{"model", {{"type", "Unigram"}}}}, code, {"model.type", "Unigram", "BPE"});
  expect_error({{"model", {{"type", "WordPiece"}}}}, code, {"WordPiece"});
  expect_error({{"model", {{"dropout", 0.1}}}}, code, {"model.dropout", "0.1"});
  expect_error({{"normalizer", {{"type", "Precompiled"}}}}, code, {"normalizer.type", "Precompiled"});
  expect_error({{"pre_tokenizer", {{"type", "UnicodeScripts"}}}}, code, {"pre_tokenizer.type", "UnicodeScripts"});
  expect_error({{"post_processor", {{"type", "Magic"}}}}, code, {"post_processor.type", "Magic"});
  expect_error({{"decoder", {{"type", "WordPiece"}}}}, code, {"decoder.type", "WordPiece"});
  expect_error({{"decoder", {{"type", "CTC"}}}}, code, {"CTC"});
  expect_error({{"version", "2.0"}}, code, {"version", "2.0"});
  const json nested = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Nmt"}}}}};
  expect_error({{"normalizer", nested}}, code, {"normalizer.normalizers[1].type", "Nmt"});
}

TEST(TokenizerJson, BrokenFieldsAreNamed) {
  const auto code = ErrorCode::kInvalidData;
  expect_error({{"model", nullptr}}, code, {"model"});
  expect_error({{"model", {{"vocab", {{"c", -1}}}}}}, code, {"model.vocab", "c", "-1"});
  expect_error({{"model", {{"vocab", {{"c", 1.5}}}}}}, code, {"model.vocab"});
  expect_error({{"model", {{"vocab", {{"c", 1ll << 40}}}}}}, code, {"model.vocab"});
  expect_error({{"model", {{"merges", {"a c"}}}}}, code, {"model.merges[0]", "a c"});
  expect_error({{"model", {{"merges", {"ab"}}}}}, code, {"model.merges[0]"});
  expect_error({{"model", {{"merges", {"a b c"}}}}}, code, {"model.merges[0]"});
  expect_error({{"model", {{"merges", json::array({json::array({"a", 1})})}}}}, code, {"model.merges[0]"});
  expect_error({{"model", {{"fuse_unk", "yes"}}}}, code, {"fuse_unk"});
  expect_error({{"added_tokens", {{{"id", 7}, {"content", "<s>"}}}}}, code, {"<s>", "expected id 3", "found 7"});
  expect_error({{"added_tokens", {{{"id", 3}}}}}, code, {"added_tokens[0]", "content"});
  expect_error({{"normalizer", {{"type", "Replace"}, {"pattern", {{"Regex", "("}}}, {"content", ""}}}}, code,
               {"normalizer.pattern.Regex", "'('"});
  expect_error({{"normalizer", {{"type", "Replace"}, {"content", ""}}}}, code, {"normalizer.pattern"});
  expect_error({{"pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}}}, code,
               {"pre_tokenizer.replacement"});
  const json post = {{"type", "TemplateProcessing"},
                     {"single", {{{"SpecialToken", {{"id", "<x>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                     {"special_tokens", json::object()}};
  expect_error({{"post_processor", post}}, code, {"post_processor.special_tokens", "<x>"});
}

TEST(TokenizerJson, NoJson) {
  for (const char* text : {"", "{", "[]", "null", "{\"model\":", "\xFF"}) {
    const auto tokenizer = Tokenizer::parse(text, "f");
    ASSERT_FALSE(tokenizer.ok()) << text;
    EXPECT_EQ(tokenizer.error().code, ErrorCode::kInvalidData);
  }
  const std::string deep(100'000, '[');
  EXPECT_FALSE(Tokenizer::parse(deep, "f").ok());
}

class Folder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "quadrille_tokenizer_XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
    write("tokenizer.json", small().dump());
  }
  void TearDown() override { std::filesystem::remove_all(path_); }
  void write(const std::string& name, const std::string& text) { std::ofstream(path_ + "/" + name) << text; }
  std::string path_;
};

TEST_F(Folder, MissingFile) {
  const auto tokenizer = Tokenizer::load(path_ + "/none");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.error().code, ErrorCode::kNotFound);
}

TEST_F(Folder, SpecialTokensInEverySpelling) {
  write("tokenizer_config.json", R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null})");
  write("special_tokens_map.json", R"({"eos_token": "ab"})");
  const auto tokenizer = Tokenizer::load(path_);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->bos_id(), 3);
  EXPECT_EQ(tokenizer->eos_id(), 2);
}

TEST_F(Folder, TheTemplateIsFoundWhereverItStands) {
  const auto rendered = [&](const std::string& config) {
    write("tokenizer_config.json", config);
    const auto tokenizer = Tokenizer::load(path_);
    EXPECT_TRUE(tokenizer.ok());
    const auto text = tokenizer->apply_chat_template(nlohmann::ordered_json::array(), false, {{"v", 1}});
    return text.ok() ? *text : text.error().message;
  };
  EXPECT_EQ(rendered(R"({"chat_template": "one{{ v }}{{ bos_token }}", "bos_token": "<s>"})"), "one1<s>");
  EXPECT_EQ(
      rendered(R"({"chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "two"}]})"),
      "two");
  write("chat_template.jinja", "three");
  EXPECT_EQ(rendered(R"({"chat_template": "one"})"), "three");
}

// Encoding does not need the template, so a template outside of the subset stops only who asks for it.
TEST_F(Folder, AnUnreadableTemplateFailsWhenAskedFor) {
  write("chat_template.jinja", "a\n{% include 'x' %}");
  const auto tokenizer = Tokenizer::load(path_);
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_TRUE(tokenizer->encode("ab", false).ok());
  const auto text = tokenizer->apply_chat_template(nlohmann::ordered_json::array(), false);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(text.error().message.find("chat_template.jinja: line 2: {% include %}"), std::string::npos)
      << text.error().message;
}

}  // namespace
}  // namespace quadrille::tokenizer
