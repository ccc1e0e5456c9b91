// SPDX-License-Identifier: Apache-2.0
// quadrille.Tensor: memory that the library made, which other libraries read by DLPack without a copy.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "element_type.h"
#include "streams.h"

namespace quadrille::python {

// "cpu", "cuda:0"
std::string device_text(dlpack::Device device);

// Memory of a tensor and of all who look at it.
class Storage {
 public:
  // 64-byte aligned host memory, or device memory usable on `stream` from here on (MemoryError).
  static std::shared_ptr<Storage> host(int64_t bytes);
  static std::shared_ptr<Storage> device(int64_t bytes, int32_t ordinal, void* stream);
  // Device memory goes back to its pool behind the work that wrote it, and behind what the default streams do now that
  // read it. Of other consumers' streams no handle is kept, for their owners may have destroyed them: who reads the
  // memory on such a stream keeps it until that is done.
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  dlpack::Device where() const { return where_; }
  // The work that writes it has been enqueued on `stream`.
  void written(void* stream) { marks_.note(stream); }
  // Orders `consumer` behind the work that wrote the memory.
  void hand_to(uintptr_t consumer);

 private:
  Storage() = default;
  void* data_ = nullptr;
  dlpack::Device where_{dlpack::kCpu, 0};
  void* keeper_ = nullptr;  // where device memory goes back
  Marks marks_;
  std::atomic<bool> read_by_[2] = {};  // the legacy default stream, that of each thread
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
