// SPDX-License-Identifier: Apache-2.0
// Writing a prepared file: sections as they come, then the index, then the head.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "formats/prepared_layout.h"

namespace quadrille::formats {

Result<PreparedWriter> PreparedWriter::create(const std::string& path, const std::string& arithmetic) {
  PreparedWriter writer;
  writer.path_ = path;
  writer.arithmetic_ = arithmetic;
  QD_CHECK(arithmetic.size() < sizeof(PreparedPage::arithmetic), "a short name of an arithmetic");
  writer.descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (writer.descriptor_ < 0) {
    return make_error(ErrorCode::kIo, "{}: cannot be created: {}", path, std::strerror(errno));
  }
  return writer;
}

PreparedWriter::PreparedWriter(PreparedWriter&& other) noexcept
    : path_(std::move(other.path_)),
      arithmetic_(std::move(other.arithmetic_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      at_(other.at_),
      sections_(std::move(other.sections_)),
      sum_(other.sum_) {}

PreparedWriter::~PreparedWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

Status PreparedWriter::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      return make_error(ErrorCode::kIo, "{}: cannot be written: {}", path_,
                        done < 0 ? std::strerror(errno) : "no bytes taken");
    }
    bytes = bytes.subspan(static_cast<size_t>(done));
    offset += static_cast<uint64_t>(done);
  }
  return {};
}

void PreparedWriter::begin(PreparedSection section) {
  QD_CHECK(section.name.size() < sizeof(PreparedRecord::name), "a short name of a section");
  section.offset = at_;
  sum_ = Checksum();
  sections_.push_back(std::move(section));
}

Status PreparedWriter::add(std::span<const std::byte> piece) {
  QD_TRY_STATUS(write_at(at_, piece));
  sum_.add(piece);
  at_ += piece.size();
  return {};
}

// The gap is a hole of the file: it reads as zeros.
void PreparedWriter::end() {
  PreparedSection& section = sections_.back();
  section.bytes = at_ - section.offset;
  section.checksum = sum_.value();
  at_ = next_section(at_);
}

Status PreparedWriter::finish(const std::vector<std::string>& notes) {
  std::vector<std::byte> index;
  const auto append = [&index](std::span<const std::byte> bytes) {
    index.insert(index.end(), bytes.begin(), bytes.end());
  };
  for (const PreparedSection& section : sections_) {
    PreparedRecord record;
    std::memcpy(record.name, section.name.data(), section.name.size());
    record.layer = section.layer;
    record.expert = section.expert;
    record.offset = section.offset;
    record.bytes = section.bytes;
    record.checksum = section.checksum;
    std::memcpy(record.form, section.form.data(), sizeof(record.form));
    append(std::as_bytes(std::span(&record, 1)));
  }
  std::string text;
  for (const std::string& note : notes) text += note + "\n";
  append(std::as_bytes(std::span(text)));

  PreparedPage page;
  std::memcpy(page.magic, kPreparedMagic, sizeof(page.magic));
  page.version = kPreparedVersion;
  page.byte_order = kPreparedByteOrder;
  page.file_bytes = at_ + index.size();
  page.index_offset = at_;
  page.num_sections = sections_.size();
  page.notes_bytes = text.size();
  page.index_checksum = checksum_of(index);
  std::memcpy(page.arithmetic, arithmetic_.data(), arithmetic_.size());
  std::vector<std::byte> head(kSectionAlignment);
  std::memcpy(head.data(), &page, sizeof(page));
  const uint64_t sum = checksum_of(std::span(head).first(kHeadChecksumAt));
  std::memcpy(head.data() + kHeadChecksumAt, &sum, sizeof(sum));

  QD_TRY_STATUS(write_at(at_, index));
  QD_TRY_STATUS(write_at(0, head));
  if (::ftruncate(descriptor_, static_cast<off_t>(page.file_bytes)) != 0 || ::fsync(descriptor_) != 0) {
    return make_error(ErrorCode::kIo, "{}: cannot be flushed: {}", path_, std::strerror(errno));
  }
  ::close(std::exchange(descriptor_, -1));
  return {};
}

}  // namespace quadrille::formats
