// SPDX-License-Identifier: Apache-2.0
// Writes a safetensors file without holding it in memory: declare every tensor, open, write each tensor's bytes in any
// order, finish. The file appears under its name only when it is whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/dtype.h"

namespace quadrille::formats {

struct TensorDeclaration {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;
};

class SafetensorsWriter {
 public:
  // Lays the tensors out (widest type first, then by name, as the field's own writer does; data begins at a multiple
  // of 8) and creates "PATH.partial". Errors: kInvalidArgument for a duplicate or empty name, a negative dimension, a
  // sub-byte tensor that is no whole number of bytes; kIo.
  static Result<SafetensorsWriter> create(const std::string& path, std::vector<TensorDeclaration> tensors,
                                          const std::map<std::string, std::string>& metadata = {});
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&&) = delete;
  // A writer that was not finished removes its partial file.
  ~SafetensorsWriter();

  // The declared tensors in the order of their bytes in the file.
  const std::vector<TensorDeclaration>& tensors() const { return tensors_; }
  uint64_t file_size() const { return file_size_; }

  // Several threads may write at once, each tensor by one of them.
  // The whole tensor. Errors: kInvalidArgument for an unknown name, a wrong size, a tensor written twice; kIo.
  Status write(const std::string& name, std::span<const std::byte> bytes);
  // The next piece of a tensor; its pieces come in ascending order, other tensors may come in between.
  Status append(const std::string& name, std::span<const std::byte> bytes);
  // kNo: the system writes the bytes out when it likes; for files that can be made again.
  enum class Flush { kYes, kNo };
  // Checks that every tensor is whole, flushes to the disk, renames. The writer is spent afterwards.
  // Errors: kInvalidArgument naming a tensor that lacks bytes; kIo.
  Status finish(Flush flush = Flush::kYes);

 private:
  struct Slot {
    uint64_t offset = 0;  // in the file
    uint64_t size = 0;
    uint64_t written = 0;
  };
  SafetensorsWriter() = default;
  Status write_at(uint64_t offset, std::span<const std::byte> bytes);

  std::string path_;
  std::string partial_path_;
  int descriptor_ = -1;
  uint64_t file_size_ = 0;
  std::vector<TensorDeclaration> tensors_;
  std::map<std::string, Slot> slots_;
};

}  // namespace quadrille::formats
