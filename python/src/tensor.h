// SPDX-License-Identifier: Apache-2.0
// quadrille.Tensor: memory that the library made, which other libraries read by DLPack without a copy.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "element_type.h"

namespace quadrille::python {

// "cpu", "cuda:0"
std::string device_text(dlpack::Device device);

// Memory of a tensor and of all who look at it.
class Storage {
 public:
  // 64-byte aligned host memory, or device memory usable on `stream` from here on (MemoryError).
  static std::shared_ptr<Storage> host(int64_t bytes);
  static std::shared_ptr<Storage> device(int64_t bytes, int32_t ordinal, void* stream);
  // Device memory goes back to its pool behind what its stream and every consumer's stream do now, so those must live.
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  dlpack::Device where() const { return where_; }
  // Orders `consumer` behind the stream that the memory was written on, and remembers it.
  void hand_to(void* consumer);

 private:
  Storage() = default;
  void* data_ = nullptr;
  dlpack::Device where_{dlpack::kCpu, 0};
  void* stream_ = nullptr;
  std::mutex mutex_;  // pairs with consumers_
  std::vector<void*> consumers_;
};

// Row-major without gaps.
struct Tensor {
  std::shared_ptr<Storage> storage;
  ElementType type = ElementType::kF32;
  std::vector<int64_t> shape;

  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() * traits_of(type).bytes; }
  void* data() const { return storage->data(); }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }

  static Tensor on_host(ElementType type, std::vector<int64_t> shape);
  static Tensor on_device(ElementType type, std::vector<int64_t> shape, int32_t ordinal, void* stream);
};

}  // namespace quadrille::python
