// SPDX-License-Identifier: Apache-2.0
// A checkpoint's tensors to prepared weights: the checks, and who keeps what for how long.
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "raise_error.h"
#include "released_gil.h"
#include "streams.h"
#include "tensor.h"
#include "weights.h"

namespace nb = nanobind;

namespace quadrille::python {
namespace {

// Weights on GPUs whose sources are kept; with the interpreter's lock.
std::vector<Weights*>& pending() {
  static std::vector<Weights*> weights;
  return weights;
}

std::vector<TensorArgument> read_parts(const std::string& name, nb::handle tensors, ElementTypes types,
                                       uintptr_t stream) {
  std::vector<TensorArgument> parts;
  const size_t count = nb::len(tensors);
  for (size_t i = 0; i < count; ++i) {
    parts.emplace_back(count == 1 ? name : name + "[" + std::to_string(i) + "]", nb::object(tensors[i]), types, stream);
  }
  return parts;
}

// [experts, rows, width] or, where not stacked, [rows, width].
std::vector<int64_t> matrix_shape(const WeightSources& sources, bool stacked, int64_t rows, int64_t width) {
  if (stacked) return {sources.num_experts, rows, width};
  return {rows, width};
}

void check_codes(WeightSources* sources, bool stacked) {
  const TensorArgument& first = sources->codes[0];
  const int32_t rank = stacked ? 3 : 2;
  first.expect_shape(std::vector<int64_t>(static_cast<size_t>(rank), -1),
                     stacked ? "experts, out features, in features" : "out features, in features");
  sources->where = first.device();
  if (stacked) sources->num_experts = first.size(0);
  const auto parts_a_tensor = sources->num_parts / static_cast<int64_t>(sources->codes.size());
  const int64_t rows = first.size(rank - 2);
  if (rows % parts_a_tensor != 0) {
    throw nb::value_error((first.name() + ": expected gate rows, then as many up rows, found " + std::to_string(rows) +
                           " rows: give an even number, or a pair (gate, up)")
                              .c_str());
  }
  sources->part_n = rows / parts_a_tensor;
  sources->k = first.size(rank - 1) * (sources->source == QD_SOURCE_INT8 ? 1 : 8);
  for (const TensorArgument& codes : sources->codes) {
    codes.expect_shape(matrix_shape(*sources, stacked, rows, first.size(rank - 1)), first.name().c_str());
    codes.expect_device(sources->where, first.name().c_str());
    codes.expect_contiguous(rank - 2);
  }
}

void check_others(const WeightSources& sources, bool stacked) {
  const int32_t rank = stacked ? 3 : 2;
  const int64_t rows = sources.codes[0].size(rank - 2);
  const int64_t g = sources.group_size;
  const int64_t groups = g == 0 ? 1 : (sources.k + g - 1) / g;
  for (const TensorArgument& scales : sources.scales) {
    scales.expect_shape(matrix_shape(sources, stacked, rows, groups),
                        g == 0 ? "one scale a channel" : "scales of the groups, ceil(in features / group_size) a row");
    scales.expect_device(sources.where, sources.codes[0].name().c_str());
    scales.expect_contiguous(rank - 2);
  }
  for (const TensorArgument& bias : sources.biases) {
    bias.expect_shape(stacked ? std::vector<int64_t>{sources.num_experts, rows} : std::vector<int64_t>{rows},
                      "a bias for each out feature");
    bias.expect_device(sources.where, sources.codes[0].name().c_str());
    bias.expect_contiguous(rank - 2);
  }
}

void expect_same_count(const std::vector<TensorArgument>& codes, const std::vector<TensorArgument>& others,
                       const std::string& name) {
  if (codes.size() == others.size()) return;
  throw nb::value_error((name + ": expected as many tensors as there are of codes, " + std::to_string(codes.size()) +
                         ", found " + std::to_string(others.size()))
                            .c_str());
}

}  // namespace

void check_may_be_in_place(const WeightSources& sources) {
  if (sources.where.type != dlpack::kCpu) {
    throw nb::value_error(
        "in_place: expected tensors on the cpu: on a GPU codes and scales are interleaved in memory of "
        "their own");
  }
  for (const TensorArgument& tensor : sources.codes) tensor.expect_writable();
}

Place::Place(int32_t threads, const std::string& kernels) {
  qd_error error;
  raise_error(qd_host_create(threads, kernels.c_str(), &host_, &error), error);
}

std::vector<const void*> WeightSources::pointers(const std::vector<TensorArgument>& tensors) const {
  std::vector<const void*> out;
  if (tensors.empty()) return out;
  const bool stacked = tensors[0].rank() > (&tensors == &biases ? 1 : 2);
  const auto parts_a_tensor = num_parts / static_cast<int64_t>(tensors.size());
  for (int64_t e = 0; e < num_experts; ++e) {
    for (const TensorArgument& tensor : tensors) {
      const int64_t element = traits_of(tensor.type()).bytes;
      const int64_t rows = tensor.size(stacked ? 1 : 0);
      const int64_t row_elements = &tensors == &biases ? 1 : tensor.size(tensor.rank() - 1);
      for (int64_t part = 0; part < parts_a_tensor; ++part) {
        const int64_t at = (stacked ? e * tensor.stride(0) : 0) + part * (rows / parts_a_tensor) * row_elements;
        out.push_back(tensor.as<const char>() + at * element);
      }
    }
  }
  return out;
}

WeightSources read_weight_sources(const std::string& name, nb::dict tensors, int32_t source, int32_t numerics,
                                  int64_t group_size, int64_t num_parts, bool stacked, uintptr_t stream) {
  WeightSources sources;
  sources.source = source;
  sources.numerics = numerics;
  sources.group_size = group_size;
  sources.num_parts = num_parts;
  const ElementTypes code_types =
      source == QD_SOURCE_INT8 ? ElementTypes{ElementType::kI8} : ElementTypes{ElementType::kI32};
  sources.codes = read_parts(name, tensors["codes"], code_types, stream);
  check_codes(&sources, stacked);
  sources.scales = read_parts(name + "_scales", tensors["scales"], {ElementType::kBf16}, stream);
  expect_same_count(sources.codes, sources.scales, name + "_scales");
  if (tensors.contains("biases")) {
    sources.biases = read_parts(name + "_bias", tensors["biases"], {ElementType::kF32}, stream);
    expect_same_count(sources.codes, sources.biases, name + "_bias");
  }
  check_others(sources, stacked);
  return sources;
}

Description::Description(const WeightSources& sources)
    : codes_(sources.code_pointers()), scales_(sources.scale_pointers()), biases_(sources.bias_pointers()) {
  qd_weights_desc_init(&desc);
  desc.source = sources.source;
  desc.numerics = sources.numerics;
  desc.num_experts = sources.num_experts;
  desc.num_parts = sources.num_parts;
  desc.part_n = sources.part_n;
  desc.k = sources.k;
  desc.group_size = sources.group_size;
  desc.on_host = sources.where.type == dlpack::kCpu ? 1 : 0;
  desc.codes = codes_.data();
  desc.scales = scales_.data();
  desc.bias = biases_.empty() ? nullptr : biases_.data();
}

Weights::Weights(WeightSources sources, const Place* place, uintptr_t stream, bool in_place)
    : where_(sources.where), num_experts_(sources.num_experts), n_(sources.part_n * sources.num_parts), k_(sources.k) {
  const Description description(sources);
  if (in_place) check_may_be_in_place(sources);
  if (!on_gpu()) {
    if (place == nullptr) throw nb::value_error("place: expected one for tensors on the cpu, found None");
    prepare_on_host(description.desc, *place, in_place);
  } else {
    release_sources();
    prepare_on_gpu(description.desc, stream);
    pending().push_back(this);
  }
  if (!on_gpu() && !in_place) return;
  for (const auto* tensors : {&sources.codes, &sources.scales, &sources.biases}) {
    for (const TensorArgument& tensor : *tensors) sources_.push_back(tensor.owner());
  }
}

void Weights::prepare_on_host(const qd_weights_desc& desc, const Place& place, bool in_place) {
  qd_error error;
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = qd_host_weights_prepare(place.host(), &desc, in_place ? 1 : 0, &host_, &error);
  }
  raise_error(result, error);
  num_bytes_ = qd_host_weights_bytes(host_);
}

void Weights::prepare_on_gpu(const qd_weights_desc& desc, uintptr_t stream) {
  CallStream call(where_.id, stream);
  qd_error error;
  qd_result result = QD_OK;
  size_t bytes = 0;
  {
    const ReleasedGil released;
    result = qd_weights_bytes(&desc, &bytes, nullptr, &error);
    if (result == QD_OK) result = qd_weights_prepare(&desc, nullptr, call.stream(), nullptr, &device_, &error);
  }
  raise_error(result, error);
  num_bytes_ = bytes;
  used_on(call.stream());
  call.finish();
}

Weights::~Weights() {
  qd_host_weights_destroy(host_);
  if (device_ == nullptr) return;
  std::erase(pending(), this);
  try {
    const ChosenGpu gpu(where_.id);
    void* keeper = keeper_stream(where_.id);
    if (marks_.order(keeper)) qd_weights_destroy(device_, keeper);
  } catch (...) {
    PyErr_Clear();  // the GPU does not answer any more: its memory is gone or lost
  }
}

bool Weights::prepared() {
  if (!on_gpu() || sources_.empty()) return true;
  int32_t done = 0;
  qd_error error;
  raise_error(qd_weights_prepared(device_, &done, &error), error);
  if (done == 0) return false;
  sources_.clear();
  std::erase(pending(), this);
  return true;
}

void Weights::release_sources() {
  const std::vector<Weights*> all = pending();
  for (Weights* weights : all) weights->prepared();
}

void Weights::synchronize() {
  if (!on_gpu()) return;
  uint32_t flags = 0;
  qd_error error;
  qd_result result = QD_OK;
  void* stream = own_stream(where_.id);
  const ChosenGpu gpu(where_.id);
  {
    const ReleasedGil released;
    result = qd_weights_synchronize(device_, stream, &flags, &error);
  }
  raise_error(result, error);
  prepared();
  if ((flags & QD_FLAG_BAD_SCALE) != 0) throw nb::value_error("scales: expected finite scales, found NaN or infinity");
  if ((flags & QD_FLAG_BAD_CODE) != 0) throw nb::value_error("codes: expected codes of -8..7, found others");
}

}  // namespace quadrille::python

void bind_weights(nb::module_& module) {
  namespace python = quadrille::python;
  using python::Place;
  using python::Weights;
  nb::class_<Place>(module, "Place", "Threads and kernels of the CPU that host layers compute with.")
      .def(nb::init<int32_t, const std::string&>(), nb::arg("threads") = 0, nb::arg("kernels") = "")
      .def_prop_ro("threads", [](const Place& p) { return qd_host_num_threads(p.host()); })
      .def_prop_ro("kernels", [](const Place& p) { return qd_host_kernels(p.host()); });
  nb::class_<Weights>(module, "Weights", "Prepared weights of one matrix of each expert.")
      .def_prop_ro("device", [](const Weights& w) { return python::device_text(w.where()); })
      .def_prop_ro("num_experts", &Weights::num_experts)
      .def_prop_ro("n", &Weights::n)
      .def_prop_ro("k", &Weights::k)
      .def_prop_ro("nbytes", &Weights::num_bytes)
      .def("prepared", &Weights::prepared)
      .def("synchronize", &Weights::synchronize);
  module.def(
      "check_in_place",
      [](const std::string& name, nb::dict tensors, int32_t source, int32_t numerics, int64_t group_size,
         int64_t num_parts, bool stacked) {
        const auto sources = python::read_weight_sources(name, tensors, source, numerics, group_size, num_parts,
                                                         stacked, python::kLegacyStream);
        python::check_may_be_in_place(sources);
        const python::Description description(sources);
        qd_error error;
        python::raise_error(qd_host_weights_check_in_place(&description.desc, &error), error);
      },
      nb::arg("name"), nb::arg("tensors"), nb::arg("source"), nb::arg("numerics"), nb::arg("group_size"),
      nb::arg("num_parts"), nb::arg("stacked"));
  module.def(
      "prepare_weights",
      [](const std::string& name, nb::dict tensors, int32_t source, int32_t numerics, int64_t group_size,
         int64_t num_parts, bool stacked, const Place* place, nb::handle stream, bool in_place) {
        const uintptr_t handle = python::stream_handle(stream);
        return new Weights(
            python::read_weight_sources(name, tensors, source, numerics, group_size, num_parts, stacked, handle), place,
            handle, in_place);
      },
      nb::arg("name"), nb::arg("tensors"), nb::arg("source"), nb::arg("numerics"), nb::arg("group_size"),
      nb::arg("num_parts"), nb::arg("stacked"), nb::arg("place").none(), nb::arg("stream").none(), nb::arg("in_place"),
      nb::rv_policy::take_ownership);
}
