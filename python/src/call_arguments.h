// SPDX-License-Identifier: Apache-2.0
// What a call of a layer and of a linear have in common: rows in, rows out, the stream and the scratch memory.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "tensor.h"
#include "tensor_argument.h"

namespace quadrille::python {

// x [rows, width]: bf16, on the CPU also fp32. The result has its element type.
struct Rows {
  TensorArgument x;
  std::vector<int64_t> out_shape;  // [rows, out_width]

  Rows(nanobind::handle given, int64_t width, int64_t out_width, dlpack::Device where, uintptr_t stream);
  int64_t count() const { return out_shape[0]; }
};

// The handle of the call's stream; of the CPU none. ValueError for a stream or a workspace on the CPU.
uintptr_t call_stream(nanobind::handle stream, nanobind::handle workspace, dlpack::Device where);

void refuse_rounding_on_gpu(int32_t rounding);

// Where the rows go: the caller's `out`, checked, or a tensor made on `stream`, which is not being captured (a graph
// cannot own what it makes).
class Out {
 public:
  Out(nanobind::handle given, const Rows& rows, dlpack::Device where, uintptr_t handle);
  void make(void* stream);
  void* data() const { return checked_.empty() ? made_.data() : checked_[0].data(); }
  // The work that writes it has been enqueued.
  void written(void* stream);
  // `out` itself, or the new tensor.
  nanobind::object result() const;

 private:
  nanobind::handle given_;
  std::vector<TensorArgument> checked_;
  dlpack::Device where_;
  ElementType type_;
  std::vector<int64_t> shape_;
  Tensor made_;
};

// Device memory of one call: the caller's uint8 tensor of at least `bytes`, or the pool's in the order of the stream.
class Workspace {
 public:
  Workspace(nanobind::handle given, size_t bytes, dlpack::Device where, uintptr_t handle, void* stream);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* memory() const { return memory_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* stream_;
  void* memory_ = nullptr;
  void* taken_ = nullptr;
};

}  // namespace quadrille::python
