// SPDX-License-Identifier: Apache-2.0
// Capsules to checked arguments.
#include "tensor_argument.h"

#include <nanobind/stl/tuple.h>

#include <optional>
#include <tuple>

#include "tensor.h"

namespace nb = nanobind;

namespace quadrille::python {
namespace {

std::string text_of(const nb::object& object) {
  return nb::str(nb::handle(object)).c_str();
}

std::string type_of_object(nb::handle object) {
  return text_of(object.type().attr("__name__"));
}

// numpy has no bf16; arrays of an extension type of that name do not speak DLPack, their bits do.
nb::object spoken(nb::handle object) {
  if (!nb::hasattr(object, "dtype") || !nb::hasattr(object, "view") || !nb::hasattr(object, "__array_interface__")) {
    return nb::borrow(object);
  }
  const std::string type = text_of(object.attr("dtype"));
  if (type == "bfloat16") return object.attr("view")("uint16");
  if (type == "float8_e4m3fn") return object.attr("view")("uint8");
  return nb::borrow(object);
}

// The unversioned form, which every library speaks; of read-only arrays the versioned one, which can say so.
nb::object capsule_of(const std::string& name, nb::handle object, bool on_gpu, uintptr_t stream) {
  nb::object method = object.attr("__dlpack__");
  nb::dict on_stream;
  if (on_gpu) on_stream["stream"] = stream;
  try {
    return method(**on_stream);
  } catch (nb::python_error& first) {
    on_stream["max_version"] = std::tuple(1, 0);
    try {
      return method(**on_stream);
    } catch (nb::python_error&) {
      const std::string reason = text_of(nb::borrow(first.value()));
      throw nb::value_error(
          (name + ": expected a tensor that its library hands out by DLPack, and it refused: " + reason).c_str());
    }
  }
}

std::string dlpack_name(dlpack::DataType type) {
  static constexpr const char* kKinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const std::string kind = type.code < 7 ? kKinds[type.code] : "type " + std::to_string(type.code) + " of ";
  return kind + std::to_string(type.bits) + (type.lanes == 1 ? "" : "x" + std::to_string(type.lanes));
}

std::optional<ElementType> element_type(dlpack::DataType found, ElementTypes types) {
  for (int32_t i = 0; i <= static_cast<int32_t>(ElementType::kU16); ++i) {
    const auto type = static_cast<ElementType>(i);
    const dlpack::DataType spelled = traits_of(type).dlpack;
    const bool same = spelled.code == found.code && spelled.bits == found.bits && found.lanes == 1;
    if (same && types.has(type)) return type;
  }
  const auto is = [&](uint8_t code, uint8_t bits, ElementType type) {
    return found.code == code && found.bits == bits && found.lanes == 1 && types.has(type);
  };
  if (is(dlpack::kUint, 16, ElementType::kBf16)) return ElementType::kBf16;
  if (is(dlpack::kUint, 32, ElementType::kI32)) return ElementType::kI32;
  if (is(dlpack::kFloat8E4m3fn, 8, ElementType::kE4m3)) return ElementType::kE4m3;
  return std::nullopt;
}

std::string strides_text(const std::vector<int64_t>& strides) {
  std::string text;
  for (const int64_t stride : strides) text += (text.empty() ? "" : ", ") + std::to_string(stride);
  return "[" + text + "]";
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
  return "[" + text + "]";
}

dlpack::Device device_of(const std::string& name, nb::handle object) {
  if (!nb::hasattr(object, "__dlpack__") || !nb::hasattr(object, "__dlpack_device__")) {
    throw nb::type_error((name + ": expected a tensor (an object with __dlpack__ and __dlpack_device__), found " +
                          type_of_object(object))
                             .c_str());
  }
  const nb::object found = object.attr("__dlpack_device__")();
  const auto number = [&](int index) {
    const nb::object item = found[index];  // an int, or an enumerator that counts as one
    const long value = PyLong_AsLong(item.ptr());
    if (value == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
    return static_cast<int32_t>(value);
  };
  const dlpack::Device device{number(0), number(1)};
  if (device.type == dlpack::kCuda) return device;
  if (device.type == dlpack::kCpu || device.type == dlpack::kCudaHost) return {dlpack::kCpu, 0};
  throw nb::value_error((name + ": expected a tensor on the cpu or on a CUDA GPU, found DLPack device type " +
                         std::to_string(device.type))
                            .c_str());
}

TensorArgument::TensorArgument(std::string name, nb::handle given, ElementTypes types, uintptr_t stream)
    : name_(std::move(name)) {
  const nb::object object = spoken(given);
  const bool gpu = device_of(name_, object).type == dlpack::kCuda;
  capsule_ = capsule_of(name_, object, gpu, stream);
  if (void* plain = PyCapsule_GetPointer(capsule_.ptr(), dlpack::kName); plain != nullptr) {
    tensor_ = &static_cast<dlpack::Managed*>(plain)->tensor;
  } else {
    PyErr_Clear();
    auto* versioned =
        static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule_.ptr(), dlpack::kVersionedName));
    if (versioned == nullptr) throw nb::python_error();
    if (versioned->major != 1) value_error("expected DLPack version 1, found " + std::to_string(versioned->major));
    read_only_ = (versioned->flags & dlpack::kReadOnly) != 0;
    tensor_ = &versioned->tensor;
  }
  const auto type = element_type(tensor_->type, types);
  if (!type) {
    throw nb::type_error((name_ + ": expected " + types.text() + ", found " + dlpack_name(tensor_->type)).c_str());
  }
  type_ = *type;
  strides_.resize(static_cast<size_t>(rank()));
  int64_t packed = 1;
  for (int32_t i = rank() - 1; i >= 0; --i) {
    strides_[static_cast<size_t>(i)] = tensor_->strides == nullptr ? packed : tensor_->strides[i];
    packed *= size(i);
  }
}

void TensorArgument::value_error(const std::string& text) const {
  throw nb::value_error((name_ + ": " + text).c_str());
}

dlpack::Device TensorArgument::device() const {
  return tensor_->device.type == dlpack::kCuda ? tensor_->device : dlpack::Device{dlpack::kCpu, 0};
}

void* TensorArgument::data() const {
  return static_cast<char*>(tensor_->data) + tensor_->byte_offset;
}

void TensorArgument::expect_rank(int32_t low, int32_t high) const {
  if (rank() >= low && rank() <= high) return;
  value_error("expected rank " + std::to_string(low) + (low == high ? "" : " to " + std::to_string(high)) +
              ", found shape " + shape_text(shape()));
}

void TensorArgument::expect_shape(const std::vector<int64_t>& expected, const char* text) const {
  bool fits = rank() == static_cast<int32_t>(expected.size());
  for (size_t i = 0; fits && i < expected.size(); ++i) {
    const int64_t found = size(static_cast<int32_t>(i));
    fits = expected[i] < 0 ? found > 0 : found == expected[i];
  }
  if (!fits) value_error("expected shape " + shape_text(expected) + " (" + text + "), found " + shape_text(shape()));
}

void TensorArgument::expect_device(dlpack::Device expected, const char* whose) const {
  const dlpack::Device found = device();
  if (found.type == expected.type && (found.type != dlpack::kCuda || found.id == expected.id)) return;
  value_error("expected " + device_text(expected) + ", where " + whose + ", found " + device_text(found));
}

void TensorArgument::expect_contiguous(int32_t from) const {
  int64_t packed = 1;
  std::vector<int64_t> wanted(strides_);
  bool fits = true;
  for (int32_t i = rank() - 1; i >= from; --i) {
    wanted[static_cast<size_t>(i)] = packed;
    fits = fits && (size(i) == 1 || stride(i) == packed);
    packed *= size(i);
  }
  if (fits || packed == 0) return;
  value_error("expected strides " + strides_text(wanted) + " (row-major without gaps), found " +
              strides_text(strides_) + ": make it contiguous");
}

void TensorArgument::expect_alignment(uintptr_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(data());
  if (address % bytes == 0) return;
  value_error("expected the first element at a multiple of " + std::to_string(bytes) + " bytes, found an address " +
              std::to_string(address % bytes) + " behind one");
}

void TensorArgument::expect_writable() const {
  if (read_only_) value_error("expected memory that may be written, found a read-only tensor");
}

qd_tensor TensorArgument::view() const {
  qd_tensor view{};
  view.data = data();
  view.type = static_cast<int32_t>(type_);
  view.rank = rank();
  for (int32_t i = 0; i < rank() && i < 4; ++i) {
    view.shape[i] = size(i);
    view.strides[i] = stride(i);
  }
  return view;
}

}  // namespace quadrille::python
