// SPDX-License-Identifier: Apache-2.0
// Checks of a call's rows, and the memory that it takes where the caller gives none.
#include "call_arguments.h"

#include "quadrille/c_api.h"
#include "raise_error.h"
#include "streams.h"
#include "weights.h"

namespace nb = nanobind;

namespace quadrille::python {
namespace {

constexpr uintptr_t kRowAlignment = 16;  // of activations on a GPU
constexpr uintptr_t kWorkspaceAlignment = 256;

ElementTypes row_types(dlpack::Device where) {
  if (where.type == dlpack::kCuda) return {ElementType::kBf16};
  return {ElementType::kBf16, ElementType::kF32};
}

void check_rows(const TensorArgument& rows, dlpack::Device where) {
  rows.expect_device(where, "the weights are");
  rows.expect_contiguous();
  if (where.type == dlpack::kCuda) rows.expect_alignment(kRowAlignment);
}

void refuse_capture(void* stream) {
  if (!is_captured(stream)) return;
  throw nb::value_error("out: expected a tensor where the stream is being captured into a graph, found None");
}

}  // namespace

Rows::Rows(nb::handle given, int64_t width, int64_t out_width, dlpack::Device where, uintptr_t stream)
    : x("x", given, row_types(where), stream) {
  x.expect_rank(2, 2);
  x.expect_shape({x.size(0), width}, "rows, in features");
  check_rows(x, where);
  out_shape = {x.size(0), out_width};
}

uintptr_t call_stream(nb::handle stream, nb::handle workspace, dlpack::Device where) {
  if (where.type == dlpack::kCuda) {
    Weights::release_sources();
    return stream_handle(stream);
  }
  if (!stream.is_none()) throw nb::value_error("stream: expected None on the cpu, found a stream");
  if (!workspace.is_none()) throw nb::value_error("workspace: expected None on the cpu, found a tensor");
  return kLegacyStream;
}

void refuse_rounding_on_gpu(int32_t rounding) {
  if (rounding == QD_ROUND_BF16) return;
  throw nb::value_error("rounding: expected \"bf16\" for weights on a GPU, found \"f32\"");
}

Out::Out(nb::handle given, const Rows& rows, dlpack::Device where, uintptr_t handle)
    : given_(given), where_(where), type_(rows.x.type()), shape_(rows.out_shape) {
  if (given.is_none()) return;
  checked_.emplace_back("out", given, ElementTypes{type_}, handle);
  checked_[0].expect_shape(shape_, "rows, out features");
  check_rows(checked_[0], where);
  checked_[0].expect_writable();
}

void Out::make(void* stream) {
  if (!checked_.empty()) return;
  if (where_.type == dlpack::kCpu) {
    made_ = Tensor::on_host(type_, shape_);
    return;
  }
  refuse_capture(stream);
  made_ = Tensor::on_device(type_, shape_, where_.id, stream);
}

void Out::written(void* stream) {
  if (checked_.empty()) made_.storage->written(stream);
}

nb::object Out::result() const {
  return given_.is_none() ? nb::cast(made_) : nb::borrow(given_);
}

Workspace::Workspace(nb::handle given, size_t bytes, dlpack::Device where, uintptr_t handle, void* stream)
    : bytes_(bytes), stream_(stream) {
  if (given.is_none()) {
    qd_error error;
    if (bytes > 0) raise_error(qd_memory_allocate(bytes, stream, &taken_, &error), error);
    memory_ = taken_;
    return;
  }
  const TensorArgument tensor("workspace", given, {ElementType::kU8}, handle);
  tensor.expect_rank(1, 1);
  tensor.expect_device(where, "the weights are");
  tensor.expect_contiguous();
  tensor.expect_alignment(kWorkspaceAlignment);
  tensor.expect_writable();
  if (tensor.size(0) < static_cast<int64_t>(bytes)) {
    throw nb::value_error(("workspace: expected at least " + std::to_string(bytes) +
                           " bytes (workspace_bytes()), found " + std::to_string(tensor.size(0)))
                              .c_str());
  }
  memory_ = tensor.data();
}

Workspace::~Workspace() {
  if (taken_ != nullptr) qd_memory_release(taken_, stream_);
}

}  // namespace quadrille::python
