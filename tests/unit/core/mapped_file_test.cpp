// SPDX-License-Identifier: Apache-2.0
#include "core/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace quadrille {
namespace {

using ::testing::HasSubstr;

class MappedFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/quadrille-mapped-XXXXXX";
    folder_ = ::mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string write(const std::string& text) {
    const std::string path = folder_ + "/file";
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::string folder_;
};

TEST_F(MappedFileTest, MapsTheWholeFile) {
  auto file = MappedFile::open(write("quadrille"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  const auto bytes = (*file)->bytes();
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()), "quadrille");
  std::byte part[4];
  ASSERT_TRUE((*file)->copy_out(4, part).ok());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(part), 4), "rill");
}

TEST_F(MappedFileTest, AnEmptyFileIsAnEmptySpan) {
  auto file = MappedFile::open(write(""));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->bytes().size(), 0u);
}

TEST_F(MappedFileTest, MissingFileAndFolderAreErrorsThatNameThePath) {
  auto missing = MappedFile::open(folder_ + "/none");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(missing.error().message, HasSubstr(folder_ + "/none"));
  auto folder = MappedFile::open(folder_);
  ASSERT_FALSE(folder.ok());
  EXPECT_THAT(folder.error().message, HasSubstr("regular file"));
}

TEST_F(MappedFileTest, AFileThatShrinksIsAnErrorAndNoBusError) {
  const std::string path = write(std::string(100000, 'x'));
  auto file = MappedFile::open(path);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->check_size().ok());
  ASSERT_EQ(::truncate(path.c_str(), 10), 0);
  const Status size = (*file)->check_size();
  ASSERT_FALSE(size.ok());
  EXPECT_THAT(size.error().message, HasSubstr("shrank"));
  std::vector<std::byte> part(1000);
  const Status copy = (*file)->copy_out(50000, part);
  ASSERT_FALSE(copy.ok());
  EXPECT_THAT(copy.error().message, HasSubstr("ends after 0"));
}

}  // namespace
}  // namespace quadrille
