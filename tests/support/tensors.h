// SPDX-License-Identifier: Apache-2.0
// Tensors of a test's safetensors file as typed vectors; a missing name or another type fails the test by name.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats/safetensors.h"

namespace quadrille::testing {

class Tensors {
 public:
  explicit Tensors(const std::string& path) {
    auto file = formats::SafetensorsFile::open(path);
    if (!file) throw std::runtime_error(file.error().message);
    file_.emplace(std::move(*file));
  }

  bool has(const std::string& name) const { return file_->find(name) != nullptr; }
  const std::vector<int64_t>& shape(const std::string& name) const { return view(name).shape; }

  // All elements; T has the size of the stored type.
  template <typename T>
  std::vector<T> get(const std::string& name) const {
    const formats::TensorView& tensor = view(name);
    const int64_t count = tensor.num_elements();
    if (static_cast<size_t>(count) * sizeof(T) != tensor.bytes.size()) {
      throw std::runtime_error(tensor.where() + ": another element size than the test expects");
    }
    std::vector<T> out(static_cast<size_t>(count));
    if (count > 0) std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
    return out;
  }

 private:
  const formats::TensorView& view(const std::string& name) const {
    const formats::TensorView* tensor = file_->find(name);
    if (tensor == nullptr) throw std::runtime_error(file_->path() + ": no tensor named " + name);
    return *tensor;
  }
  std::optional<formats::SafetensorsFile> file_;
};

// Places where two vectors differ, at most `shown` named; empty when they are equal. NaN codes are equal by bits only.
template <typename T>
std::string differences(const std::vector<T>& found, const std::vector<T>& expected, size_t shown = 5) {
  if (found.size() != expected.size()) {
    return "size " + std::to_string(found.size()) + " beside " + std::to_string(expected.size());
  }
  std::string text;
  size_t count = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::memcmp(&found[i], &expected[i], sizeof(T)) == 0) continue;
    if (count++ < shown) {
      text += "[" + std::to_string(i) + "] found " + std::to_string(found[i]) + " expected " +
              std::to_string(expected[i]) + "; ";
    }
  }
  return count == 0 ? "" : std::to_string(count) + " of " + std::to_string(found.size()) + " differ: " + text;
}

}  // namespace quadrille::testing
