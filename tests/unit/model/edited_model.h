// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder in memory that a test edits and writes to a temporary folder: tensors and config.json.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "formats/dtype.h"
#include "formats/json.h"

namespace quadrille::testing {

struct EditedTensor {
  formats::DType dtype = formats::DType::kBF16;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  // Element `index` of a 16-bit or 32-bit type.
  void set16(size_t index, uint16_t value);
  void set32(size_t index, uint32_t value);
  // BF16 -> F32 (exact).
  void widen();
  // BF16 [n, k] of zeros.
  static EditedTensor zeros(std::vector<int64_t> shape);
};

class EditedModel {
 public:
  explicit EditedModel(const std::string& folder);
  ~EditedModel();
  EditedModel(const EditedModel&) = delete;
  EditedModel& operator=(const EditedModel&) = delete;

  EditedTensor& tensor(const std::string& name);
  // Writes model.safetensors and config.json; the folder goes away with this object.
  const std::string& write();

  std::map<std::string, EditedTensor> tensors;
  formats::Json config;

 private:
  std::string folder_;
};

}  // namespace quadrille::testing
