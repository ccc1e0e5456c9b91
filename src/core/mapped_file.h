// SPDX-License-Identifier: Apache-2.0
// A file mapped read-only. Its owner must expect the file to shrink while it is mapped: check_size() compares the size
// again, and copy_out() reads through the descriptor, so that a truncated file is an error and not a bus error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/result.h"

namespace quadrille {

class MappedFile {
 public:
  // Opens and maps `path` (a regular file). Errors: kNotFound, kIo. An empty file maps to an empty span.
  static Result<std::shared_ptr<const MappedFile>> open(const std::string& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  // The whole file. Touching a page behind a new, smaller end of the file raises SIGBUS: call check_size() before a
  // long read, or use copy_out().
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // kInvalidData when the file is now smaller than it was when it was mapped.
  Status check_size() const;
  // Reads [offset, offset + destination.size()) with pread: safe against a file that shrinks meanwhile.
  Status copy_out(uint64_t offset, std::span<std::byte> destination) const;

 private:
  MappedFile() = default;
  std::string path_;
  int descriptor_ = -1;
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace quadrille
