// SPDX-License-Identifier: Apache-2.0
// A named tensor inside a mapped file: type, shape and place of its bytes, nothing copied.
// Made by safetensors.h, handed on by checkpoint.h; read by quantize and by the model loader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/mapped_file.h"
#include "core/result.h"
#include "formats/dtype.h"

namespace quadrille::formats {

struct TensorView {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;  // row-major, little endian; [] is a scalar; a dimension may be 0
  // The bytes in the mapping. They start anywhere: an element may lie unaligned. Reading them after the file shrank
  // raises SIGBUS; copy_to() gives an error instead.
  std::span<const std::byte> bytes;
  std::shared_ptr<const MappedFile> file;  // keeps the mapping alive
  uint64_t file_offset = 0;                // of bytes[0] in the file

  int64_t num_elements() const;
  // Copies all bytes through the descriptor: safe when the file shrinks. Errors: kInvalidData, kIo, and
  // kInvalidArgument when `destination` has another size than `bytes`.
  Status copy_to(std::span<std::byte> destination) const;
  // Copies destination.size() bytes from byte `offset` of the tensor on.
  Status copy_part(uint64_t offset, std::span<std::byte> destination) const;
  // "FILE: tensor 'NAME'", the head of an error message.
  std::string where() const;
};

// "[3, 24, 256]"
std::string shape_text(std::span<const int64_t> shape);

}  // namespace quadrille::formats
