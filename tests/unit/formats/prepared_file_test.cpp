// SPDX-License-Identifier: Apache-2.0
// A prepared file gives its sections back; whatever is changed in it, cut off or made up is refused and named.
#include "formats/prepared_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "formats/prepared_layout.h"
#include "support/scratch_folder.h"

namespace quadrille::formats {
namespace {

using ::testing::HasSubstr;
using Bytes = std::vector<std::byte>;

Bytes random_bytes(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  Bytes bytes(count);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

class Prepared : public ::testing::Test {
 protected:
  ~Prepared() override { ::close(descriptor); }
  void SetUp() override {
    auto writer = PreparedWriter::create(path, "exact");
    ASSERT_TRUE(writer) << writer.error().message;
    for (size_t i = 0; i < sections.size(); ++i) {
      PreparedSection section;
      section.name = "part";
      section.layer = static_cast<int64_t>(i);
      section.form[0] = std::byte{7};
      writer->begin(section);
      const std::span<const std::byte> all(sections[i]);
      const size_t cut = all.size() / 3;
      ASSERT_TRUE(writer->add(all.first(cut)));
      ASSERT_TRUE(writer->add(all.subspan(cut)));
      writer->end();
    }
    ASSERT_TRUE(writer->finish({"one note", "another"}));
    whole = read();
  }

  Bytes read() const {
    std::ifstream in(path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const auto bytes = std::as_bytes(std::span(text));
    return {bytes.begin(), bytes.end()};
  }
  // Into memory: thousands of files on a disk take seconds.
  void write(const Bytes& bytes) const {
    ASSERT_EQ(::ftruncate(descriptor, static_cast<off_t>(bytes.size())), 0);
    ASSERT_EQ(::pwrite(descriptor, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  // Everything that can be asked of a file.
  static Status check_all(const std::string& path) {
    QD_TRY(const auto file, PreparedFile::open(path));
    for (const PreparedSection& section : file->sections()) QD_TRY_STATUS(file->check(section));
    return file->check_gaps();
  }
  // The head with a changed field, and a checksum that agrees with it.
  template <typename T>
  Bytes with_head(size_t offset, T value) const {
    Bytes bytes = whole;
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
    const uint64_t sum = checksum_of(std::span(bytes).first(kHeadChecksumAt));
    std::memcpy(bytes.data() + kHeadChecksumAt, &sum, sizeof(sum));
    return bytes;
  }
  void expect_refused(const Bytes& bytes, ErrorCode code, const std::vector<std::string>& words) const {
    write(bytes);
    const auto file = PreparedFile::open(memory);
    ASSERT_FALSE(file.ok());
    EXPECT_STREQ(error_code_name(file.error().code), error_code_name(code)) << file.error().message;
    EXPECT_THAT(file.error().message, HasSubstr(memory));
    EXPECT_THAT(file.error().message, HasSubstr("quadrille prepare"));
    for (const std::string& word : words) EXPECT_THAT(file.error().message, HasSubstr(word));
  }

  testing::ScratchFolder folder;
  std::string path = folder.file("weights.quadrille");
  const int descriptor = ::memfd_create("prepared", 0);
  const std::string memory = fmt::format("/proc/self/fd/{}", descriptor);
  std::vector<Bytes> sections = {random_bytes(1, 1), random_bytes(4096, 2), random_bytes(5000, 3), random_bytes(64, 4)};
  Bytes whole;
};

TEST_F(Prepared, GivesItsSectionsBack) {
  const auto file = PreparedFile::open(path);
  ASSERT_TRUE(file) << file.error().message;
  EXPECT_EQ((*file)->head().arithmetic, "exact");
  EXPECT_EQ((*file)->notes(), (std::vector<std::string>{"one note", "another"}));
  ASSERT_EQ((*file)->sections().size(), sections.size());
  for (size_t i = 0; i < sections.size(); ++i) {
    const PreparedSection* section = (*file)->find("part", static_cast<int64_t>(i));
    ASSERT_NE(section, nullptr);
    EXPECT_EQ(section->offset % kSectionAlignment, 0u);
    EXPECT_EQ(section->form[0], std::byte{7});
    const auto bytes = (*file)->bytes(*section);
    EXPECT_EQ(Bytes(bytes.begin(), bytes.end()), sections[i]);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % kSectionAlignment, 0u);
    EXPECT_TRUE((*file)->check(*section));
  }
  EXPECT_EQ((*file)->find("part", 9), nullptr);
  EXPECT_TRUE((*file)->check_gaps());
}

TEST_F(Prepared, EveryFlippedByteIsFound) {
  for (size_t at = 0; at < whole.size(); at += at % 4096 < 200 ? 1 : 13) {
    Bytes damaged = whole;
    damaged[at] ^= std::byte{0x20};
    write(damaged);
    ASSERT_FALSE(check_all(memory)) << "byte " << at << " of " << whole.size();
  }
  write(whole);
  EXPECT_TRUE(check_all(memory));
}

TEST_F(Prepared, EveryLengthButItsOwnIsRefused) {
  for (size_t size = 0; size <= whole.size() + 4096; size += 509) {
    Bytes other = whole;
    other.resize(size);
    write(other);
    ASSERT_FALSE(PreparedFile::open(memory)) << size;
  }
  Bytes cut = whole;
  cut.resize(whole.size() - 1);
  expect_refused(cut, ErrorCode::kInvalidData,
                 {fmt::format("expected {} bytes, found {}", whole.size(), whole.size() - 1), "copy it again"});
}

TEST_F(Prepared, SaysWhatItExpectedOfTheHead) {
  expect_refused(with_head(offsetof(PreparedPage, magic), uint64_t{0}), ErrorCode::kInvalidData, {"other bytes"});
  expect_refused(with_head(offsetof(PreparedPage, version), uint32_t{9}), ErrorCode::kUnsupported,
                 {"expected version 1", "found 9"});
  expect_refused(with_head(offsetof(PreparedPage, byte_order), uint32_t{0x04030201}), ErrorCode::kUnsupported,
                 {"little-endian", "04030201"});
  expect_refused(with_head(offsetof(PreparedPage, cpu_features), uint64_t{5}), ErrorCode::kUnsupported,
                 {"CPU features 0x5", "expected none"});
  expect_refused(with_head(offsetof(PreparedPage, arithmetic), uint64_t{0}), ErrorCode::kInvalidData, {"arithmetic"});
  Bytes changed = whole;
  changed[1000] = std::byte{1};
  expect_refused(changed, ErrorCode::kInvalidData, {"head", "the checksum"});
  changed = whole;
  changed.back() ^= std::byte{1};
  expect_refused(changed, ErrorCode::kInvalidData, {"index", "the checksum"});
}

// Numbers that lie, with checksums that agree: any field of head and index, any of the values that break sums.
TEST_F(Prepared, HostileNumbersAreRefusedOrHarmless) {
  const std::vector<uint64_t> values = {
      0,          1,          4095,  4096,         uint64_t{1} << 31, uint64_t{1} << 32,
      1ull << 40, 1ull << 63, ~0ull, ~0ull - 4095, ~0ull / 192,       whole.size()};
  for (size_t offset = 0; offset < sizeof(PreparedPage); offset += 8) {
    for (const uint64_t value : values) {
      write(with_head(offset, value));
      (void)check_all(memory);
    }
  }
  uint64_t index_offset = 0;
  std::memcpy(&index_offset, whole.data() + offsetof(PreparedPage, index_offset), sizeof(index_offset));
  int accepted = 0;
  for (size_t at = 0; at < 4 * sizeof(PreparedRecord); at += 8) {
    for (const uint64_t value : values) {
      Bytes bytes = whole;
      std::memcpy(bytes.data() + index_offset + at, &value, sizeof(value));
      const uint64_t sum = checksum_of(std::span(bytes).subspan(index_offset));
      std::memcpy(bytes.data() + offsetof(PreparedPage, index_checksum), &sum, sizeof(sum));
      const uint64_t head = checksum_of(std::span(bytes).first(kHeadChecksumAt));
      std::memcpy(bytes.data() + kHeadChecksumAt, &head, sizeof(head));
      write(bytes);
      const Status status = check_all(memory);
      const size_t field = at % sizeof(PreparedRecord);
      const bool is_place = field == offsetof(PreparedRecord, offset) || field == offsetof(PreparedRecord, bytes) ||
                            field == offsetof(PreparedRecord, checksum);
      const bool is_same = std::memcmp(bytes.data(), whole.data(), whole.size()) == 0;
      if (is_place && !is_same) {
        EXPECT_FALSE(status) << at << " " << value;
      }
      accepted += status ? 1 : 0;
    }
  }
  EXPECT_GT(accepted, 0) << "layers, experts and forms are the reader's";
}

TEST_F(Prepared, TwoSectionsOfOneNameAreRefused) {
  auto writer = PreparedWriter::create(folder.file("twice"), "exact");
  ASSERT_TRUE(writer);
  for (int i = 0; i < 2; ++i) {
    PreparedSection section;
    section.name = "same";
    writer->begin(section);
    ASSERT_TRUE(writer->add(sections[0]));
    writer->end();
  }
  ASSERT_TRUE(writer->finish({}));
  const auto file = PreparedFile::open(folder.file("twice"));
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message, HasSubstr("'same'"));
}

TEST_F(Prepared, WhatWasNotFinishedIsNone) {
  {
    auto writer = PreparedWriter::create(folder.file("begun"), "exact");
    ASSERT_TRUE(writer);
    PreparedSection section;
    section.name = "part";
    writer->begin(section);
    ASSERT_TRUE(writer->add(sections[2]));
  }
  EXPECT_FALSE(PreparedFile::open(folder.file("begun")));
  EXPECT_FALSE(PreparedFile::open(folder.file("missing")));
}

TEST(Checksum, PiecesAreTheirConcatenation) {
  const Bytes bytes = random_bytes(1000, 5);
  for (const size_t step : {1, 7, 64, 100, 999}) {
    Checksum sum;
    for (size_t at = 0; at < bytes.size(); at += step) {
      sum.add(std::span(bytes).subspan(at, std::min(step, bytes.size() - at)));
    }
    EXPECT_EQ(sum.value(), checksum_of(bytes)) << step;
  }
  // The length counts: zeros behind are not nothing.
  EXPECT_NE(checksum_of(Bytes(1)), checksum_of(Bytes(2)));
  EXPECT_NE(checksum_of(Bytes{}), checksum_of(Bytes(64)));
}

}  // namespace
}  // namespace quadrille::formats
