// SPDX-License-Identifier: Apache-2.0
#include "formats/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "support/golden.h"
#include "support/scratch_folder.h"
#include "unit/formats/safetensors_bytes.h"

namespace quadrille::formats {
namespace {

using ::quadrille::testing::ScratchFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string file_with(const std::vector<std::string>& names) {
  std::string header = "{";
  size_t end = 0;
  for (const std::string& name : names) {
    header += (end == 0 ? "" : ",") +
              fmt::format(R"("{}":{{"dtype":"U8","shape":[2],"data_offsets":[{},{}]}})", name, end, end + 2);
    end += 2;
  }
  return testing::safetensors_bytes(header + "}", end);
}

std::string index_of(const std::string& map) {
  return R"({"metadata":{"total_size":4},"weight_map":)" + map + "}";
}

class CheckpointTest : public ::testing::Test {
 protected:
  std::string error_of_index(const std::string& index) {
    folder_.write("model.safetensors.index.json", index);
    const auto checkpoint = Checkpoint::open(folder_.path());
    return checkpoint ? "no error" : checkpoint.error().message;
  }
  ScratchFolder folder_;
};

TEST_F(CheckpointTest, OpensASingleFile) {
  folder_.write("model.safetensors", file_with({"a", "b"}));
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT(checkpoint->names(), ElementsAre("a", "b"));
  EXPECT_FALSE(checkpoint->is_sharded());
  EXPECT_EQ(checkpoint->total_bytes(), 4u);
  EXPECT_EQ(checkpoint->shard_of("a"), "model.safetensors");
  EXPECT_TRUE(checkpoint->require("a"));
  EXPECT_THAT(checkpoint->require("c").error().message, HasSubstr("'c'"));
}

TEST_F(CheckpointTest, OpensOnlyTheShardsOfTheIndex) {
  folder_.write("model-1.safetensors", file_with({"a", "unmapped"}));
  folder_.write("model-000002.safetensors", file_with({"b"}));
  folder_.write("consolidated.safetensors", "rubbish that nobody may open");
  folder_.write("model.safetensors", "rubbish beside an index");
  folder_.write("model.safetensors.index.json",
                index_of(R"({"a":"model-1.safetensors","b":"model-000002.safetensors"})"));
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT(checkpoint->names(), ElementsAre("a", "b"));
  EXPECT_TRUE(checkpoint->is_sharded());
  EXPECT_EQ(checkpoint->shard_of("b"), "model-000002.safetensors");
  EXPECT_EQ(checkpoint->find("unmapped"), nullptr);
}

TEST_F(CheckpointTest, TakesTheMappedOneOfTwoAndWarns) {
  folder_.write("m1.safetensors", file_with({"a", "b"}));
  folder_.write("m2.safetensors", file_with({"c", "a"}));
  folder_.write("model.safetensors.index.json",
                index_of(R"({"a":"m2.safetensors","b":"m1.safetensors","c":"m2.safetensors"})"));
  std::vector<std::string> warnings;
  const auto checkpoint = Checkpoint::open(folder_.path(), [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) warnings.emplace_back(text);
  });
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->shard_of("a"), "m2.safetensors");
  EXPECT_EQ(checkpoint->find("a")->bytes[0], std::byte{2});
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_THAT(warnings[0], HasSubstr("tensor 'a'"));
}

TEST_F(CheckpointTest, RefusesAnIndexThatLeavesTheFolder) {
  // The file is there: only the name may stop it.
  folder_.write("inside/x", "");
  folder_.write("outside.safetensors", file_with({"a"}));
  const ScratchFolder other;
  const std::string outside = other.write("m.safetensors", file_with({"a"}));
  const std::string relative = "../" + std::filesystem::path(other.path()).filename().string() + "/m.safetensors";
  ASSERT_TRUE(std::filesystem::exists(folder_.file(relative)));
  for (const std::string& name : {relative, outside, std::string("inside/../outside.safetensors"), std::string(".."),
                                  std::string("."), std::string(""), std::string("./outside.safetensors"),
                                  std::string("a\\\\b"), std::string("a\\u0000.safetensors"), std::string("..x")})
    EXPECT_THAT(error_of_index(index_of("{\"a\":\"" + name + "\"}")), HasSubstr("inside the folder")) << name;
  EXPECT_EQ(error_of_index(index_of(R"({"a":"outside.safetensors"})")), "no error");
}

TEST_F(CheckpointTest, NamesWhatAnIndexLacks) {
  folder_.write("m.safetensors", file_with({"a"}));
  EXPECT_THAT(error_of_index(index_of(R"({"a":"m.safetensors","b":"m.safetensors"})")),
              HasSubstr("tensor 'b': expected in m.safetensors"));
  EXPECT_THAT(error_of_index(index_of(R"({"a":"gone.safetensors"})")), HasSubstr("gone.safetensors"));
  EXPECT_THAT(error_of_index(index_of("{}")), HasSubstr("weight_map"));
  EXPECT_THAT(error_of_index(index_of("[]")), HasSubstr("weight_map"));
  EXPECT_THAT(error_of_index(index_of(R"({"a":1})")), HasSubstr("weight_map.a"));
  EXPECT_THAT(error_of_index("{}"), HasSubstr("weight_map"));
  EXPECT_THAT(error_of_index("[]"), HasSubstr("expected an object"));
  EXPECT_THAT(error_of_index("{"), HasSubstr("index.json"));
  folder_.write("m.safetensors", "broken");
  EXPECT_THAT(error_of_index(index_of(R"({"a":"m.safetensors"})")), HasSubstr("m.safetensors"));
}

TEST_F(CheckpointTest, NamesAFolderWithoutWeights) {
  const auto empty = Checkpoint::open(folder_.path());
  ASSERT_FALSE(empty);
  EXPECT_EQ(empty.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(empty.error().message, HasSubstr("model.safetensors"));
  EXPECT_THAT(Checkpoint::open(folder_.file("none")).error().message, HasSubstr("no such folder"));
}

TEST_F(CheckpointTest, AShardThatShrinksIsAnErrorAtRead) {
  folder_.write("m.safetensors", file_with({"a", "b"}));
  folder_.write("model.safetensors.index.json", index_of(R"({"a":"m.safetensors","b":"m.safetensors"})"));
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint);
  ASSERT_EQ(::truncate(folder_.file("m.safetensors").c_str(), 20), 0);
  std::vector<std::byte> copy(2);
  EXPECT_EQ(checkpoint->find("b")->copy_to(copy).error().code, ErrorCode::kInvalidData);
}

TEST(CheckpointGolden, OpensEveryModel) {
  const auto golden = quadrille::testing::golden_path("models");
  if (!golden) GTEST_SKIP() << quadrille::testing::kNoGolden;
  int count = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(*golden)) {
    if (entry.path().filename() != "config.json") continue;
    const auto checkpoint = Checkpoint::open(entry.path().parent_path().string());
    ASSERT_TRUE(checkpoint) << checkpoint.error().message;
    EXPECT_TRUE(checkpoint->find("model.embed_tokens.weight"));
    ++count;
  }
  EXPECT_GE(count, 20);
}

}  // namespace
}  // namespace quadrille::formats
