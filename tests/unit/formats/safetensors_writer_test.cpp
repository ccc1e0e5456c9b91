// SPDX-License-Identifier: Apache-2.0
#include "formats/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "formats/safetensors.h"
#include "support/golden.h"
#include "support/scratch_folder.h"

namespace quadrille::formats {
namespace {

using ::quadrille::testing::data_path;
using ::quadrille::testing::read_bytes;
using ::quadrille::testing::ScratchFolder;
using ::testing::HasSubstr;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// Reads a file with our reader and writes it with our writer.
void expect_same_bytes_again(const std::string& source) {
  const ScratchFolder folder;
  const auto file = SafetensorsFile::open(source);
  ASSERT_TRUE(file) << file.error().message;
  std::vector<TensorDeclaration> declarations;
  for (const auto& [name, view] : file->tensors()) declarations.push_back({name, view.dtype, view.shape});
  auto writer = SafetensorsWriter::create(folder.file("copy.safetensors"), declarations, file->metadata());
  ASSERT_TRUE(writer) << writer.error().message;
  for (const auto& [name, view] : file->tensors()) ASSERT_TRUE(writer->write(name, view.bytes));
  ASSERT_TRUE(writer->finish());
  EXPECT_TRUE(read_bytes(source) == read_bytes(folder.file("copy.safetensors"))) << source;
}

TEST(SafetensorsWriter, WritesTheBytesOfTheFieldsWriter) {
  for (const auto& entry : std::filesystem::directory_iterator(data_path("quantize")))
    if (entry.path().extension() == ".safetensors") expect_same_bytes_again(entry.path().string());
}

TEST(SafetensorsWriter, WritesTheBytesOfTheFieldsWriterForModels) {
  const auto golden = quadrille::testing::golden_path("models");
  if (!golden) GTEST_SKIP() << quadrille::testing::kNoGolden;
  for (const char* name : {"olmoe/bf16/model-00002-of-00002.safetensors", "olmoe/w4a8-g128/model.safetensors",
                           "mixtral/w4a8-g128-int/model.safetensors", "mixtral/golden.safetensors"})
    expect_same_bytes_again(*golden + "/" + name);
}

TEST(SafetensorsWriter, TakesPiecesInAnyOrderOfTensors) {
  const ScratchFolder folder;
  auto writer = SafetensorsWriter::create(folder.file("f.safetensors"),
                                          {{"a", DType::kU8, {3}}, {"b", DType::kF32, {2}}, {"e", DType::kF32, {0}}});
  ASSERT_TRUE(writer) << writer.error().message;
  EXPECT_EQ(writer->tensors()[0].name, "b");  // widest first
  ASSERT_TRUE(writer->append("a", bytes_of("x")));
  ASSERT_TRUE(writer->write("b", bytes_of("12345678")));
  ASSERT_TRUE(writer->append("a", bytes_of("yz")));
  EXPECT_FALSE(std::filesystem::exists(folder.file("f.safetensors")));
  ASSERT_TRUE(writer->finish());
  const auto file = SafetensorsFile::open(folder.file("f.safetensors"));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ(file->find("b")->file_offset % 8, 0u);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->find("a")->bytes.data()), 3), "xyz");
  EXPECT_EQ(std::filesystem::file_size(folder.file("f.safetensors")), writer->file_size());
  EXPECT_FALSE(std::filesystem::exists(folder.file("f.safetensors.partial")));
  EXPECT_FALSE(writer->finish());
}

TEST(SafetensorsWriter, EscapesNames) {
  const ScratchFolder folder;
  const std::string name = "a\"\\\n\xC3\xA9";
  auto writer = SafetensorsWriter::create(folder.file("f.safetensors"), {{name, DType::kU8, {1}}}, {{"k\"", "v\t"}});
  ASSERT_TRUE(writer);
  ASSERT_TRUE(writer->write(name, bytes_of("x")));
  ASSERT_TRUE(writer->finish());
  const auto file = SafetensorsFile::open(folder.file("f.safetensors"));
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_NE(file->find(name), nullptr);
  EXPECT_EQ(file->metadata().at("k\""), "v\t");
}

TEST(SafetensorsWriter, LeavesNothingWhenAbandoned) {
  const ScratchFolder folder;
  {
    auto writer = SafetensorsWriter::create(folder.file("f.safetensors"), {{"a", DType::kU8, {3}}});
    ASSERT_TRUE(writer);
    const Status status = writer->finish();
    ASSERT_FALSE(status);
    EXPECT_THAT(status.error().message, HasSubstr("tensor 'a' has 0 of 3 bytes"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(SafetensorsWriter, RefusesWrongUse) {
  const ScratchFolder folder;
  const std::string path = folder.file("f.safetensors");
  EXPECT_FALSE(SafetensorsWriter::create(path, {{"a", DType::kU8, {1}}, {"a", DType::kF32, {1}}}));
  EXPECT_FALSE(SafetensorsWriter::create(path, {{"", DType::kU8, {1}}}));
  EXPECT_FALSE(SafetensorsWriter::create(path, {{"__metadata__", DType::kU8, {1}}}));
  EXPECT_FALSE(SafetensorsWriter::create(path, {{"a", DType::kF4, {3}}}));
  EXPECT_FALSE(SafetensorsWriter::create(path, {{"a", DType::kU8, {-1}}}));
  EXPECT_EQ(SafetensorsWriter::create(folder.file("no/f"), {}).error().code, ErrorCode::kIo);
  auto writer = SafetensorsWriter::create(path, {{"a", DType::kU8, {3}}});
  ASSERT_TRUE(writer);
  EXPECT_FALSE(writer->write("b", bytes_of("x")));
  EXPECT_FALSE(writer->write("a", bytes_of("xx")));
  EXPECT_FALSE(writer->append("a", bytes_of("xxxx")));
  EXPECT_TRUE(writer->write("a", bytes_of("xxx")));
  EXPECT_FALSE(writer->write("a", bytes_of("xxx")));
}

}  // namespace
}  // namespace quadrille::formats
