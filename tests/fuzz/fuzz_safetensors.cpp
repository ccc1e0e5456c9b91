// SPDX-License-Identifier: Apache-2.0
// Any bytes as a safetensors file: the header is refused, or every tensor lies inside the file, end to end. The first
// byte of the input picks a file size that lies about the rest. Accepted files are opened for real as well.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "formats/safetensors.h"

namespace {

using quadrille::formats::dtype_bits;
using quadrille::formats::SafetensorsFile;
using quadrille::formats::SafetensorsHeader;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_header(const SafetensorsHeader& header, uint64_t file_size) {
  uint64_t end = 0;
  for (const auto& record : header.records) {
    require(record.begin == end && record.end >= record.begin);
    uint64_t count = 1;
    for (const int64_t extent : record.shape) count *= static_cast<uint64_t>(extent);
    require(count * static_cast<uint64_t>(dtype_bits(record.dtype)) == 8 * (record.end - record.begin));
    end = record.end;
  }
  require(header.data_offset + end == file_size);
}

// A file in memory with these bytes, opened by its path.
void open_as_file(const uint8_t* data, size_t size) {
  static const int descriptor = ::memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(descriptor);
  require(descriptor >= 0 && ::ftruncate(descriptor, 0) == 0);
  require(::pwrite(descriptor, data, size, 0) == static_cast<ssize_t>(size));
  const auto file = SafetensorsFile::open(path);
  require(file.ok());
  unsigned sum = 0;
  for (const auto& [name, view] : file->tensors())
    for (const std::byte value : view.bytes) sum += static_cast<unsigned>(value);
  asm volatile("" : : "r"(sum));  // the reads are not optimised away
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t lie = data[0];
  ++data;
  --size;
  const uint64_t file_size = size + (lie > 200 ? uint64_t{1} << (lie - 200) : 0);
  const auto head = std::as_bytes(std::span(data, size));
  const auto header = quadrille::formats::parse_safetensors_header(head, file_size, "fuzz");
  if (!header) {
    require(!header.error().message.empty());
    return 0;
  }
  check_header(*header, file_size);
  if (file_size == size) open_as_file(data, size);
  return 0;
}
