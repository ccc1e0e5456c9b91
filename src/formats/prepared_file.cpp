// SPDX-License-Identifier: Apache-2.0
// Reading: nothing of the file is believed before it was compared with the file's own length.
#include "formats/prepared_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "core/check.h"
#include "formats/prepared_layout.h"

namespace quadrille::formats {
namespace {

constexpr const char* kMakeAgain = "make it again with 'quadrille prepare MODEL OUT'";

Error damaged(const std::string& where, const std::string& what, const std::string& expected,
              const std::string& found) {
  return make_error(ErrorCode::kInvalidData, "{}: {}: expected {}, found {}; the file is damaged: {}", where, what,
                    expected, found, kMakeAgain);
}

Error other_checksum(const std::string& where, const std::string& what, uint64_t expected, uint64_t found) {
  return damaged(where, what, fmt::format("the checksum {:016x}", expected), fmt::format("{:016x}", found));
}

template <size_t N>
std::string text_in(const char (&field)[N]) {
  return {field, std::find(field, field + N, '\0')};
}

bool is_name(const std::string& text) {
  const auto legal = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  return !text.empty() && std::all_of(text.begin(), text.end(), legal);
}

Status check_program(const PreparedPage& page, const std::string& where) {
  if (std::memcmp(page.magic, kPreparedMagic, sizeof(page.magic)) != 0) {
    return make_error(ErrorCode::kInvalidData, "{}: expected prepared weights, found other bytes at the beginning; {}",
                      where, kMakeAgain);
  }
  if (page.byte_order != kPreparedByteOrder) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: expected little-endian numbers (mark {:08x}), found mark {:08x}; {} on a machine of this "
                      "kind",
                      where, kPreparedByteOrder, page.byte_order, kMakeAgain);
  }
  if (page.version != kPreparedVersion) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: expected version {} of the prepared format, found {}; {} of this version of the program",
                      where, kPreparedVersion, page.version, kMakeAgain);
  }
  return {};
}

// The notes are lines.
std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

Result<PreparedSection> parse_record(const PreparedRecord& record, const PreparedHead& head, uint64_t begin,
                                     const std::string& where) {
  PreparedSection section{
      text_in(record.name), record.layer, record.expert, record.offset, record.bytes, record.checksum, {}};
  std::memcpy(section.form.data(), record.form, sizeof(record.form));
  if (!is_name(section.name) || record.name[sizeof(record.name) - 1] != '\0' || section.layer < -1 ||
      section.expert < -1) {
    return damaged(where, "index", "the name of a section", "other bytes");
  }
  if (section.offset != begin) {
    return damaged(where, section.text(), fmt::format("its bytes at {}, behind the section before", begin),
                   fmt::format("at {}", section.offset));
  }
  if (section.bytes == 0 || section.bytes > head.index_offset - begin) {
    return damaged(where, section.text(), fmt::format("1 to {} bytes", head.index_offset - begin),
                   fmt::format("{}", section.bytes));
  }
  return section;
}

}  // namespace

bool is_prepared_folder(const std::string& folder) {
  std::error_code ignored;
  return std::filesystem::exists(folder + "/" + kPreparedFileName, ignored);
}

Error prepared_instead_of_checkpoint(const std::string& folder) {
  return make_error(ErrorCode::kUnsupported,
                    "{}: a prepared folder ({}) has its weights in the layout of the CPU kernels alone: GPUs, "
                    "tensor-parallel ranks, quantize and prepare need the checkpoint that it was made from; give that "
                    "folder",
                    folder, kPreparedFileName);
}

std::string PreparedSection::text() const {
  std::string text = "'" + name + "'";
  if (expert >= 0) text += fmt::format(" {}", expert);
  if (layer >= 0) text += fmt::format(" of layer {}", layer);
  return text;
}

uint64_t PreparedHead::index_bytes() const {
  return num_sections * sizeof(PreparedRecord) + notes_bytes;
}

Result<PreparedHead> parse_prepared_head(std::span<const std::byte> bytes, uint64_t file_size,
                                         const std::string& where) {
  if (bytes.size() < kSectionAlignment) {
    return damaged(where, "head", fmt::format("{} bytes", kSectionAlignment), fmt::format("{}", bytes.size()));
  }
  PreparedPage page;
  std::memcpy(&page, bytes.data(), sizeof(page));
  QD_TRY_STATUS(check_program(page, where));
  if (page.file_bytes != file_size) {
    return make_error(
        ErrorCode::kInvalidData,
        "{}: expected {} bytes, found {}: the file was cut or is still being copied; copy it again, or {}", where,
        page.file_bytes, file_size, kMakeAgain);
  }
  if (page.cpu_features != 0) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: its layouts need CPU features {:#x}, expected none: those that this program knows run on "
                      "every x86-64 CPU; {}",
                      where, page.cpu_features, kMakeAgain);
  }
  const uint64_t room = file_size - std::min(page.index_offset, file_size);
  const bool is_inside = page.index_offset >= kSectionAlignment && page.index_offset % kSectionAlignment == 0 &&
                         page.num_sections <= room / sizeof(PreparedRecord) &&
                         room - page.num_sections * sizeof(PreparedRecord) == page.notes_bytes;
  if (!is_inside) {
    return damaged(where, "index", fmt::format("it from a multiple of {} to the end", kSectionAlignment),
                   fmt::format("{} sections and {} bytes of notes at {} of {}", page.num_sections, page.notes_bytes,
                               page.index_offset, file_size));
  }
  PreparedHead head{file_size,        page.index_offset,   page.num_sections,
                    page.notes_bytes, page.index_checksum, text_in(page.arithmetic)};
  if (!is_name(head.arithmetic)) return damaged(where, "head", "the name of an arithmetic", "other bytes");
  return head;
}

Result<std::vector<PreparedSection>> parse_prepared_index(const PreparedHead& head, std::span<const std::byte> index,
                                                          const std::string& where) {
  QD_CHECK(index.size() == head.index_bytes(), "the index that the head tells of");
  std::vector<PreparedSection> sections;
  sections.reserve(head.num_sections);
  uint64_t begin = kSectionAlignment;
  for (uint64_t i = 0; i < head.num_sections; ++i) {
    PreparedRecord record;
    std::memcpy(&record, index.data() + i * sizeof(record), sizeof(record));
    if (begin > head.index_offset) return damaged(where, "index", "sections in front of it", "one behind");
    QD_TRY(PreparedSection section, parse_record(record, head, begin, where));
    begin = next_section(section.offset + section.bytes);
    sections.push_back(std::move(section));
  }
  if (begin != head.index_offset) {
    return damaged(where, "index", fmt::format("sections up to {}", head.index_offset),
                   fmt::format("they end at {}", begin));
  }
  return sections;
}

Result<std::shared_ptr<const PreparedFile>> PreparedFile::open(const std::string& path) {
  std::shared_ptr<PreparedFile> prepared(new PreparedFile);
  QD_TRY(prepared->file_, MappedFile::open(path));
  const auto all = prepared->file_->bytes();
  const auto page = all.first(std::min<size_t>(all.size(), kSectionAlignment));
  QD_TRY(prepared->head_, parse_prepared_head(page, all.size(), path));
  const PreparedHead& head = prepared->head_;
  uint64_t told = 0;
  std::memcpy(&told, page.data() + kHeadChecksumAt, sizeof(told));
  const uint64_t found = checksum_of(page.first(kHeadChecksumAt));
  if (found != told) return other_checksum(path, "head", told, found);
  const auto index = all.subspan(head.index_offset, head.index_bytes());
  if (const uint64_t sum = checksum_of(index); sum != head.index_checksum) {
    return other_checksum(path, "index", head.index_checksum, sum);
  }
  QD_TRY(prepared->sections_, parse_prepared_index(head, index, path));
  for (size_t i = 0; i < prepared->sections_.size(); ++i) {
    const PreparedSection& section = prepared->sections_[i];
    const auto key = std::tuple(std::string_view(section.name), section.layer, section.expert);
    if (prepared->places_.emplace(key, i).second) continue;
    return damaged(path, section.text(), "one section of that name", "two");
  }
  const auto notes = index.last(head.notes_bytes);
  prepared->notes_ = lines_of({reinterpret_cast<const char*>(notes.data()), notes.size()});
  return std::shared_ptr<const PreparedFile>(std::move(prepared));
}

const PreparedSection* PreparedFile::find(std::string_view name, int64_t layer, int64_t expert) const {
  const auto place = places_.find({name, layer, expert});
  return place == places_.end() ? nullptr : &sections_[place->second];
}

std::span<const std::byte> PreparedFile::bytes(const PreparedSection& section) const {
  return file_->bytes().subspan(section.offset, section.bytes);
}

Status PreparedFile::check(const PreparedSection& section) const {
  QD_TRY_STATUS(file_->check_size());
  const uint64_t found = checksum_of(bytes(section));
  if (found == section.checksum) return {};
  return other_checksum(path(), section.text(), section.checksum, found);
}

Status PreparedFile::check_gaps() const {
  QD_TRY_STATUS(file_->check_size());
  for (const PreparedSection& section : sections_) {
    const uint64_t end = section.offset + section.bytes;
    const auto gap = file_->bytes().subspan(end, next_section(end) - end);
    const auto is_zero = [](std::byte b) { return b == std::byte{0}; };
    const auto place = std::find_if_not(gap.begin(), gap.end(), is_zero);
    if (place == gap.end()) continue;
    return damaged(path(),
                   fmt::format("byte {}, behind {}", end + static_cast<uint64_t>(place - gap.begin()), section.text()),
                   "zero", fmt::format("{}", static_cast<int>(*place)));
  }
  return {};
}

}  // namespace quadrille::formats
