// SPDX-License-Identifier: Apache-2.0
// Any bytes as head and index of a prepared file, checksums aside: refused, or every section lies inside the file, one
// behind the other.
#include <cstdlib>
#include <cstring>
#include <string>

#include "formats/prepared_layout.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

// The first 80 bytes are the head, the rest is the index.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quadrille::formats;
  if (size < sizeof(PreparedPage)) return 0;
  std::vector<std::byte> page(kSectionAlignment);
  std::memcpy(page.data(), data, sizeof(PreparedPage));
  PreparedPage head;
  std::memcpy(&head, data, sizeof(head));
  const auto parsed = parse_prepared_head(page, head.file_bytes, "fuzz");
  const auto index = std::as_bytes(std::span(data + sizeof(PreparedPage), size - sizeof(PreparedPage)));
  if (!parsed || parsed->index_bytes() != index.size()) return 0;
  const auto sections = parse_prepared_index(*parsed, index, "fuzz");
  if (!sections) {
    require(!sections.error().message.empty());
    return 0;
  }
  uint64_t end = kSectionAlignment;
  for (const PreparedSection& section : *sections) {
    require(section.offset >= end && section.bytes > 0 && section.bytes <= parsed->file_bytes - section.offset);
    require(section.offset % kSectionAlignment == 0 && !section.name.empty());
    end = section.offset + section.bytes;
  }
  require(end <= parsed->index_offset);
  return 0;
}
