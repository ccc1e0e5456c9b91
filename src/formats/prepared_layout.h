// SPDX-License-Identifier: Apache-2.0
// The bytes of a prepared file's head and index, shared by its reader, its writer and their tests. Little-endian.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/prepared_file.h"

namespace quadrille::formats {

inline constexpr char kPreparedMagic[8] = {'Q', 'D', 'W', 'E', 'I', 'G', 'H', 'T'};
inline constexpr uint32_t kPreparedByteOrder = 0x01020304;

// The first bytes of the first page; zeros up to its checksum, which is of all in front of it.
struct PreparedPage {
  char magic[8] = {};
  uint32_t version = 0, byte_order = 0;
  uint64_t file_bytes = 0;
  uint64_t index_offset = 0, num_sections = 0, notes_bytes = 0;  // the index reaches to the end of the file
  uint64_t index_checksum = 0;
  uint64_t cpu_features = 0;  // that a CPU must have to compute from these layouts: none yet
  char arithmetic[16] = {};
};
static_assert(sizeof(PreparedPage) == 80);
inline constexpr uint64_t kHeadChecksumAt = kSectionAlignment - sizeof(uint64_t);

struct PreparedRecord {
  char name[24] = {};
  int64_t layer = 0, expert = 0;
  uint64_t offset = 0, bytes = 0, checksum = 0;
  std::byte form[128] = {};
};
static_assert(sizeof(PreparedRecord) == 192);
static_assert(sizeof(PreparedRecord::form) == sizeof(SectionForm));

// Where the section behind one that ends at `end` begins. `end` lies inside of a file: no overflow.
constexpr uint64_t next_section(uint64_t end) {
  return (end + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

}  // namespace quadrille::formats
