// SPDX-License-Identifier: Apache-2.0
// Reads a safetensors file: checks the whole header before anything of it is used, then hands out tensor views.
// Called by checkpoint.h for models, and directly by whoever reads one file (layer files, golden data).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "core/mapped_file.h"
#include "core/result.h"
#include "formats/tensor_view.h"

namespace quadrille::formats {

class SafetensorsFile {
 public:
  // Maps `path` and checks: header length against the file, UTF-8 JSON, types and names, shape products without
  // overflow, ranges that lie end to end from 0 to exactly the end of the file. Errors: kNotFound, kIo, and
  // kInvalidData "FILE: [tensor 'NAME':] expected ..., found ...".
  static Result<SafetensorsFile> open(const std::string& path);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  // The strings of __metadata__.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Null when there is no such tensor.
  const TensorView* find(const std::string& name) const;
  const std::string& path() const { return file_->path(); }
  const std::shared_ptr<const MappedFile>& file() const { return file_; }

 private:
  SafetensorsFile() = default;
  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// What a header says, checked against the size of the file: the part of open() that needs no file (fuzzed).
struct SafetensorsHeader {
  struct Record {
    std::string name;
    DType dtype = DType::kU8;
    std::vector<int64_t> shape;
    uint64_t begin = 0;  // relative to data_offset
    uint64_t end = 0;
  };
  std::vector<Record> records;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  // 8 + header length
};
// `head` holds at least 8 + header length bytes of the file, or all of it.
Result<SafetensorsHeader> parse_safetensors_header(std::span<const std::byte> head, uint64_t file_size,
                                                   std::string_view where);

}  // namespace quadrille::formats
