// SPDX-License-Identifier: Apache-2.0
// The file of a prepared folder: sections of bytes that are computed from where they lie in the mapping, behind a head
// and an index with a checksum each (docs/prepared.md has the picture). Knows names, places and checksums; what a
// section means is its reader's (model/prepared_weights.h).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/checksum.h"
#include "core/mapped_file.h"
#include "core/result.h"

namespace quadrille::formats {

inline constexpr const char* kPreparedFileName = "weights.quadrille";
inline constexpr uint32_t kPreparedVersion = 1;
inline constexpr uint64_t kSectionAlignment = 4096;
// What a reader needs to know of a section, in its own words; zeros behind.
using SectionForm = std::array<std::byte, 128>;

// True where FOLDER has the file.
bool is_prepared_folder(const std::string& folder);
// For who needs a checkpoint and was given a prepared folder.
Error prepared_instead_of_checkpoint(const std::string& folder);

struct PreparedSection {
  std::string name;                 // "q", "expert": up to 23 of a-z, 0-9 and _
  int64_t layer = -1, expert = -1;  // -1: of none; of a piece of a table, its number
  uint64_t offset = 0, bytes = 0;   // in the file; offset is a multiple of kSectionAlignment, bytes are not 0
  uint64_t checksum = 0;            // core/checksum.h of its bytes
  SectionForm form{};

  std::string text() const;  // "'q' of layer 3", "'expert' 5 of layer 3"
};

// The first page, checked.
struct PreparedHead {
  uint64_t file_bytes = 0, index_offset = 0;
  uint64_t num_sections = 0, notes_bytes = 0;
  uint64_t index_checksum = 0;
  std::string arithmetic;  // which numerics the scales were made for
  uint64_t index_bytes() const;
};

// `page`: the first kSectionAlignment bytes of a file of `file_size`. Errors: kInvalidData (other bytes, a length that
// is not the file's, numbers that contradict each other), kUnsupported (version, byte order, CPU features).
Result<PreparedHead> parse_prepared_head(std::span<const std::byte> page, uint64_t file_size, const std::string& where);
// The sections of an index in ascending order of their bytes: each begins where the one before ended, rounded up, so
// that none overlap and none lies outside. Errors: kInvalidData.
Result<std::vector<PreparedSection>> parse_prepared_index(const PreparedHead& head, std::span<const std::byte> index,
                                                          const std::string& where);

class PreparedFile {
 public:
  // Maps the file and reads head and index alone, checksums included. Errors: those of the two above, a wrong checksum,
  // kNotFound, kIo.
  static Result<std::shared_ptr<const PreparedFile>> open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  uint64_t size() const { return file_->size(); }
  const PreparedHead& head() const { return head_; }
  const std::vector<std::string>& notes() const { return notes_; }
  const std::vector<PreparedSection>& sections() const { return sections_; }
  // Null: there is none.
  const PreparedSection* find(std::string_view name, int64_t layer = -1, int64_t expert = -1) const;
  // Its bytes in the mapping, valid as long as this object.
  std::span<const std::byte> bytes(const PreparedSection& section) const;
  // Reads all of a section. kInvalidData: its checksum is another, or the file shrank.
  Status check(const PreparedSection& section) const;
  // The bytes between the sections, which nobody reads, are zero.
  Status check_gaps() const;

 private:
  PreparedFile() = default;
  std::shared_ptr<const MappedFile> file_;
  PreparedHead head_;
  std::vector<std::string> notes_;
  std::vector<PreparedSection> sections_;
  std::map<std::tuple<std::string_view, int64_t, int64_t>, size_t> places_;
};

// Writes the file section by section; the head comes last, so that a file that was not finished is none.
class PreparedWriter {
 public:
  // Errors: kIo.
  static Result<PreparedWriter> create(const std::string& path, const std::string& arithmetic);
  PreparedWriter(PreparedWriter&& other) noexcept;
  PreparedWriter& operator=(PreparedWriter&&) = delete;
  ~PreparedWriter();

  // begin(), its bytes in pieces, end(). `section` has name, layer, expert and form.
  void begin(PreparedSection section);
  Status add(std::span<const std::byte> piece);
  void end();
  // Index and head, flushed to the disk. Errors: kIo.
  Status finish(const std::vector<std::string>& notes);
  uint64_t bytes_written() const { return at_; }

 private:
  PreparedWriter() = default;
  Status write_at(uint64_t offset, std::span<const std::byte> bytes);

  std::string path_, arithmetic_;
  int descriptor_ = -1;
  uint64_t at_ = kSectionAlignment;
  std::vector<PreparedSection> sections_;
  Checksum sum_;
};

}  // namespace quadrille::formats
