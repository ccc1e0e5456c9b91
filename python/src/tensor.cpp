// SPDX-License-Identifier: Apache-2.0
// Memory of results, and the protocols by which others read it.
#include "tensor.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "bindings.h"
#include "quadrille/c_api.h"
#include "raise_error.h"
#include "streams.h"

namespace nb = nanobind;

namespace quadrille::python {

std::string device_text(dlpack::Device device) {
  return device.type == dlpack::kCuda ? "cuda:" + std::to_string(device.id) : "cpu";
}

std::shared_ptr<Storage> Storage::host(int64_t bytes) {
  constexpr int64_t kAlignment = 64;
  std::shared_ptr<Storage> made(new Storage);
  made->data_ = std::aligned_alloc(kAlignment, static_cast<size_t>((bytes + kAlignment) / kAlignment * kAlignment));
  if (made->data_ == nullptr) throw std::bad_alloc();
  return made;
}

std::shared_ptr<Storage> Storage::device(int64_t bytes, int32_t ordinal, void* stream) {
  std::shared_ptr<Storage> made(new Storage);
  made->where_ = {dlpack::kCuda, ordinal};
  made->keeper_ = keeper_stream(ordinal);
  qd_error error;
  raise_error(qd_memory_allocate(static_cast<size_t>(bytes), stream, &made->data_, &error), error);
  made->written(stream);
  return made;
}

Storage::~Storage() {
  if (where_.type == dlpack::kCpu) {
    std::free(data_);
    return;
  }
  const ChosenGpu gpu(where_.id);
  for (const uintptr_t stream : {kLegacyStream, kPerThreadStream}) {
    if (!read_by_[stream - 1]) continue;
    (void)qd_stream_follow(keeper_, pointer_of(stream), nullptr);
  }
  if (marks_.order(keeper_)) qd_memory_release(data_, keeper_);
}

void Storage::hand_to(uintptr_t consumer) {
  const ChosenGpu gpu(where_.id);
  if (consumer != kLegacyStream && consumer != kPerThreadStream) {
    if (!marks_.order(pointer_of(consumer))) throw std::runtime_error("stream: CUDA refused to order it");
    return;
  }
  read_by_[consumer - 1] = true;
  void* between = own_stream(where_.id);  // a default stream waits for streams alone
  if (!marks_.order(between)) throw std::runtime_error("stream: CUDA refused to order it");
  follow(pointer_of(consumer), between);
}

int64_t Tensor::num_elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

Tensor Tensor::on_host(ElementType type, std::vector<int64_t> shape) {
  Tensor made{nullptr, type, std::move(shape)};
  made.storage = Storage::host(made.num_bytes());
  return made;
}

Tensor Tensor::on_device(ElementType type, std::vector<int64_t> shape, int32_t ordinal, void* stream) {
  Tensor made{nullptr, type, std::move(shape)};
  made.storage = Storage::device(made.num_bytes(), ordinal, stream);
  return made;
}

namespace {

// What a capsule holds: either managed struct, and the tensor that keeps the memory.
template <typename Managed>
struct Exported {
  Managed managed{};
  Tensor tensor;
};

template <typename Managed>
nb::object export_capsule(const Tensor& tensor, const char* name) {
  auto* exported = new Exported<Managed>{{}, tensor};
  dlpack::Tensor& out = exported->managed.tensor;
  out.data = exported->tensor.data();
  out.device = exported->tensor.storage->where();
  out.rank = static_cast<int32_t>(tensor.shape.size());
  out.type = traits_of(tensor.type).dlpack;
  out.shape = exported->tensor.shape.data();
  exported->managed.context = exported;
  exported->managed.deleter = [](Managed* self) { delete static_cast<Exported<Managed>*>(self->context); };
  if constexpr (std::is_same_v<Managed, dlpack::ManagedVersioned>) exported->managed.major = 1;
  // A consumer renames the capsule and deletes the struct itself; else it goes with the capsule.
  PyObject* capsule = PyCapsule_New(&exported->managed, name, [](PyObject* self) {
    for (const char* unused : {dlpack::kName, dlpack::kVersionedName}) {
      if (PyCapsule_IsValid(self, unused) == 0) continue;
      auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(self, unused));
      managed->deleter(managed);
    }
  });
  if (capsule == nullptr) {
    delete exported;
    throw nb::python_error();
  }
  return nb::steal(capsule);
}

[[noreturn]] void buffer_error(const std::string& text) {
  PyErr_SetString(PyExc_BufferError, text.c_str());
  throw nb::python_error();
}

void order_consumer(const Tensor& tensor, nb::handle stream) {
  if (tensor.storage->where().type == dlpack::kCpu) {
    if (!stream.is_none()) throw nb::value_error("stream: expected None for a tensor on the cpu, found a stream");
    return;
  }
  int64_t number = 0;
  if (nb::try_cast(stream, number) && number == -1) return;  // the consumer orders by itself
  tensor.storage->hand_to(stream_handle(stream));
}

nb::object to_dlpack(const Tensor& tensor, nb::handle stream, std::optional<std::tuple<int64_t, int64_t>> max_version,
                     std::optional<std::tuple<int32_t, int32_t>> dl_device, std::optional<bool> copy) {
  const dlpack::Device where = tensor.storage->where();
  if (dl_device && *dl_device != std::tuple(where.type, where.id)) {
    buffer_error("dl_device: expected that of the tensor, " + device_text(where) + ", found another");
  }
  if (copy.value_or(false)) buffer_error("copy: expected None or False, found True: copy what you get");
  order_consumer(tensor, stream);
  if (max_version && std::get<0>(*max_version) >= 1) {
    return export_capsule<dlpack::ManagedVersioned>(tensor, dlpack::kVersionedName);
  }
  return export_capsule<dlpack::Managed>(tensor, dlpack::kName);
}

Tensor bits_of(const Tensor& tensor) {
  Tensor bits = tensor;
  const int64_t bytes = traits_of(tensor.type).bytes;
  if (bytes == 4) throw nb::type_error("bits: expected a tensor of 8 or 16 bits an element, found one of 32");
  bits.type = bytes == 2 ? ElementType::kU16 : ElementType::kU8;
  return bits;
}

// bf16 as fp32 of the same values.
Tensor widened(const Tensor& tensor) {
  if (tensor.type != ElementType::kBf16) return tensor;
  Tensor wide = Tensor::on_host(ElementType::kF32, tensor.shape);
  const auto* codes = tensor.as<const uint16_t>();
  auto* values = wide.as<uint32_t>();
  for (int64_t i = 0; i < tensor.num_elements(); ++i) values[i] = static_cast<uint32_t>(codes[i]) << 16;
  return wide;
}

nb::object to_numpy(const Tensor& tensor) {
  if (tensor.storage->where().type != dlpack::kCpu) {
    throw nb::type_error(
        "numpy: expected a tensor on the cpu, found one on a GPU: copy it with the library that reads it");
  }
  return nb::module_::import_("numpy").attr("from_dlpack")(nb::cast(widened(tensor)));
}

nb::object to_array(const Tensor& tensor, nb::handle dtype, std::optional<bool> copy) {
  nb::object array = to_numpy(tensor);
  if (!dtype.is_none()) array = array.attr("astype")(dtype);
  return copy.value_or(false) ? array.attr("copy")() : array;
}

nb::tuple shape_tuple(const Tensor& tensor) {
  nb::list sizes;
  for (const int64_t size : tensor.shape) sizes.append(size);
  return nb::tuple(sizes);
}

std::string text_of(const Tensor& tensor) {
  std::string sizes;
  for (const int64_t size : tensor.shape) sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  return "quadrille.Tensor([" + sizes + "], " + traits_of(tensor.type).name + ", " +
         device_text(tensor.storage->where()) + ")";
}

}  // namespace
}  // namespace quadrille::python

void bind_tensor(nb::module_& module) {
  using quadrille::python::Tensor;
  namespace python = quadrille::python;
  nb::class_<Tensor>(
      module, "Tensor",
      "What a call gives back: row-major memory that torch, numpy, jax and cupy take by DLPack without a "
      "copy.\n\nOn a GPU a consumer's stream (DLPack's `stream`) is ordered behind the work that writes "
      "the tensor; the stream must\nlive as long as what it read. float8_e4m3fn travels as uint8.")
      .def_prop_ro("shape", &python::shape_tuple, "Sizes of the dimensions.")
      .def_prop_ro(
          "dtype", [](const Tensor& t) { return python::traits_of(t.type).name; },
          "\"bfloat16\", \"float32\", \"int32\", \"float8_e4m3fn\", ...: the name that torch and numpy use.")
      .def_prop_ro(
          "device", [](const Tensor& t) { return python::device_text(t.storage->where()); }, "\"cpu\" or \"cuda:N\".")
      .def_prop_ro("nbytes", &Tensor::num_bytes, "Bytes of the elements.")
      .def_prop_ro(
          "ndim", [](const Tensor& t) { return t.shape.size(); }, "Number of dimensions.")
      .def_prop_ro(
          "data_ptr", [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data()); },
          "Address of the first byte.")
      .def("bits", &python::bits_of,
           "The same memory as uint16 (of bfloat16) or uint8: how numpy, which has no such types, can hold it.")
      .def("numpy", &python::to_numpy,
           "A numpy array over the same memory; of bfloat16 a float32 array of the same values (a copy).")
      .def("__array__", &python::to_array, nb::arg("dtype").none() = nb::none(), nb::arg("copy").none() = nb::none())
      .def("__dlpack__", &python::to_dlpack, nb::kw_only(), nb::arg("stream").none() = nb::none(),
           nb::arg("max_version").none() = nb::none(), nb::arg("dl_device").none() = nb::none(),
           nb::arg("copy").none() = nb::none(),
           nb::sig("def __dlpack__(self, *, stream: object | None = None, "
                   "max_version: tuple[int, int] | None = None, dl_device: tuple[int, int] | None = None, copy: bool | "
                   "None = None) -> object"))
      .def("__dlpack_device__",
           [](const Tensor& t) {
             const auto where = t.storage->where();
             return std::tuple(where.type, where.id);
           })
      .def("__len__",
           [](const Tensor& t) {
             if (t.shape.empty()) throw nb::type_error("a tensor of rank 0 has no length");
             return t.shape[0];
           })
      .def("__repr__", &python::text_of);
}
