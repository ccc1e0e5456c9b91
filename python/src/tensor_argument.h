// SPDX-License-Identifier: Apache-2.0
// An argument that is a tensor of some library: taken by DLPack without a copy, and checked by name before anything of
// it is read. TypeError for what is no tensor or has another element type, ValueError for rank, shape, strides,
// alignment and device; each says argument, rule, expected and found.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>
#include <vector>

#include "element_type.h"

namespace quadrille::python {

class TensorArgument {
 public:
  // `stream`: where a tensor on a GPU will be read; its library orders that stream behind what writes the tensor.
  // uint16 counts as bfloat16, uint8 as float8_e4m3fn, uint32 as int32 where `types` has those and not these.
  TensorArgument(std::string name, nanobind::handle object, ElementTypes types, uintptr_t stream);

  const std::string& name() const { return name_; }
  ElementType type() const { return type_; }
  int32_t rank() const { return tensor_->rank; }
  int64_t size(int32_t dimension) const { return tensor_->shape[dimension]; }
  int64_t stride(int32_t dimension) const { return strides_[static_cast<size_t>(dimension)]; }
  std::vector<int64_t> shape() const { return {tensor_->shape, tensor_->shape + tensor_->rank}; }
  dlpack::Device device() const;  // page-locked host memory is the cpu
  bool on_gpu() const { return device().type == dlpack::kCuda; }
  bool is_read_only() const { return read_only_; }
  // First element.
  void* data() const;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data());
  }
  // Keeps the memory.
  nanobind::object owner() const { return capsule_; }

  // Each throws where the rule is broken. -1: any size of at least one; `text`: the shape in words of the caller.
  void expect_rank(int32_t low, int32_t high) const;
  void expect_shape(const std::vector<int64_t>& shape, const char* text) const;
  void expect_device(dlpack::Device device, const char* whose) const;
  // Row-major without gaps from dimension `from` on.
  void expect_contiguous(int32_t from = 0) const;
  void expect_alignment(uintptr_t bytes) const;
  void expect_writable() const;

  // For c_host.h; host memory.
  qd_tensor view() const;

 private:
  [[noreturn]] void value_error(const std::string& text) const;

  std::string name_;
  nanobind::object capsule_;
  const dlpack::Tensor* tensor_ = nullptr;
  ElementType type_ = ElementType::kF32;
  std::vector<int64_t> strides_;
  bool read_only_ = false;
};

// "[2, 64]"
std::string shape_text(const std::vector<int64_t>& shape);

// Where the tensor lies, without taking it. TypeError for what speaks no DLPack.
dlpack::Device device_of(const std::string& name, nanobind::handle object);

}  // namespace quadrille::python
