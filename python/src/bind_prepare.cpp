// SPDX-License-Identifier: Apache-2.0
// Prepared bytes and back, quantisation, and the conversions of scales and words: tensors of host memory in, new
// tensors out. python/quadrille/preparation.py, scales.py and words.py have the words for people.
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "raise_error.h"
#include "released_gil.h"
#include "streams.h"
#include "tensor.h"
#include "tensor_argument.h"
#include "weights.h"

namespace nb = nanobind;

namespace quadrille::python {
namespace {

constexpr dlpack::Device kHost{dlpack::kCpu, 0};

// `call(error)` without the interpreter's lock; raises what it reports.
template <typename Call>
void without_lock(Call&& call) {
  qd_error error;
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = call(&error);
  }
  raise_error(result, error);
}

TensorArgument host_tensor(const char* name, nb::handle given, ElementTypes types, int32_t min_rank) {
  TensorArgument tensor(name, given, types, kLegacyStream);
  tensor.expect_device(kHost, "conversions run");
  tensor.expect_rank(min_rank, 4);
  for (int32_t i = 0; i < tensor.rank(); ++i) {
    if (tensor.size(i) > 0) continue;
    throw nb::value_error(
        (std::string(name) + ": expected dimensions of at least 1, found shape " + shape_text(tensor.shape())).c_str());
  }
  return tensor;
}

std::vector<int64_t> with_last(std::vector<int64_t> shape, int64_t last) {
  shape.back() = last;
  return shape;
}

Tensor prepare(const std::string& name, nb::dict tensors, int32_t source, int32_t numerics, int64_t group_size,
               int64_t num_parts, bool stacked, const Place& place, int32_t layout) {
  const WeightSources sources =
      read_weight_sources(name, tensors, source, numerics, group_size, num_parts, stacked, kLegacyStream);
  sources.codes[0].expect_device(kHost, "preparation to bytes runs");
  const Description description(sources);
  const qd_weights_desc& desc = description.desc;
  uint64_t bytes = 0;
  without_lock([&](qd_error* error) { return qd_host_prepared_bytes(&desc, layout, &bytes, error); });
  Tensor made = Tensor::on_host(ElementType::kU8, {static_cast<int64_t>(bytes)});
  without_lock(
      [&](qd_error* error) { return qd_host_prepare(place.host(), &desc, layout, made.data(), bytes, error); });
  return made;
}

nb::dict unprepare(nb::handle given) {
  const TensorArgument prepared = host_tensor("prepared", given, {ElementType::kU8}, 1);
  prepared.expect_rank(1, 1);
  prepared.expect_contiguous();
  const auto bytes = static_cast<uint64_t>(prepared.size(0));
  qd_prepared_info info;
  qd_prepared_info_init(&info);
  without_lock([&](qd_error* error) { return qd_prepared_read_info(prepared.data(), bytes, &info, error); });
  const int64_t n = info.num_parts * info.part_n;
  const int64_t groups = info.group_size == 0 ? 1 : (info.k + info.group_size - 1) / info.group_size;
  Tensor codes = Tensor::on_host(ElementType::kI32, {info.num_experts, n, info.k / 8});
  const bool exact = info.numerics == QD_NUMERICS_EXACT;
  Tensor scales = Tensor::on_host(ElementType::kBf16, {info.num_experts, n, exact ? groups : 0});
  without_lock([&](qd_error* error) {
    return qd_host_unprepare(prepared.data(), bytes, codes.as<uint32_t>(), exact ? scales.as<uint16_t>() : nullptr,
                             error);
  });
  nb::dict result;
  result["codes"] = nb::cast(codes);
  result["scales"] = exact ? nb::cast(scales) : nb::none();
  result["layout"] = info.layout;
  result["numerics"] = info.numerics;
  result["group_size"] = info.group_size;
  result["num_parts"] = info.num_parts;
  return result;
}

nb::tuple quantize(nb::handle given, int64_t group_size, int32_t quotient, const Place& place) {
  const TensorArgument weight =
      host_tensor("weight", given, {ElementType::kF16, ElementType::kBf16, ElementType::kF32}, 1);
  const qd_tensor view = weight.view();
  const int64_t k = weight.size(weight.rank() - 1);
  const int64_t groups = group_size == 0 ? 1 : (k + group_size - 1) / group_size;
  Tensor codes = Tensor::on_host(ElementType::kI32, with_last(weight.shape(), (k + 7) / 8));
  Tensor scales = Tensor::on_host(ElementType::kBf16, with_last(weight.shape(), groups));
  without_lock([&](qd_error* error) {
    return qd_quantize(place.host(), &view, group_size, quotient, codes.as<uint32_t>(), scales.as<uint16_t>(), error);
  });
  return nb::make_tuple(codes, scales);
}

nb::tuple split_scales(nb::handle given) {
  const TensorArgument scales = host_tensor("scales", given, {ElementType::kBf16}, 1);
  const qd_tensor view = scales.view();
  std::vector<int64_t> rows = scales.shape();
  rows.pop_back();
  Tensor channel = Tensor::on_host(ElementType::kF32, rows), channel8 = Tensor::on_host(ElementType::kF32, rows);
  Tensor group = Tensor::on_host(ElementType::kE4m3, scales.shape());
  Tensor group8 = Tensor::on_host(ElementType::kE4m3, scales.shape());
  without_lock([&](qd_error* error) {
    return qd_scales_split(&view, channel.as<float>(), channel8.as<float>(), group.as<uint8_t>(), group8.as<uint8_t>(),
                           error);
  });
  return nb::make_tuple(channel, channel8, group, group8);
}

Tensor scale_tables(nb::handle given) {
  const TensorArgument scales = host_tensor("group_scale8", given, {ElementType::kE4m3}, 1);
  const qd_tensor view = scales.view();
  std::vector<int64_t> shape = scales.shape();
  shape.push_back(8);
  Tensor tables = Tensor::on_host(ElementType::kE4m3, shape);
  without_lock([&](qd_error* error) { return qd_scales_tables(&view, tables.as<uint8_t>(), error); });
  return tables;
}

Tensor packed_scale_tables(nb::handle given) {
  const TensorArgument scales = host_tensor("group_scale8", given, {ElementType::kE4m3}, 2);
  const qd_tensor view = scales.view();
  std::vector<int64_t> shape = scales.shape();
  std::swap(shape[shape.size() - 1], shape[shape.size() - 2]);
  shape.push_back(8);
  Tensor tables = Tensor::on_host(ElementType::kE4m3, shape);
  without_lock([&](qd_error* error) { return qd_scales_packed_tables(&view, tables.as<uint8_t>(), error); });
  return tables;
}

Tensor convert_words(nb::handle given, int32_t conversion) {
  const TensorArgument words = host_tensor("words", given, {ElementType::kI32}, 1);
  const qd_tensor view = words.view();
  Tensor made = Tensor::on_host(ElementType::kI32, words.shape());
  without_lock([&](qd_error* error) { return qd_words_convert(&view, conversion, made.as<uint32_t>(), error); });
  return made;
}

Tensor reorder_words(nb::handle given) {
  const TensorArgument words = host_tensor("words", given, {ElementType::kI32}, 2);
  const qd_tensor view = words.view();
  Tensor made = Tensor::on_host(ElementType::kI32, words.shape());
  without_lock([&](qd_error* error) { return qd_words_reorder(&view, made.as<uint32_t>(), error); });
  return made;
}

Tensor words_to_e4m3(nb::handle given, nb::handle given_scales, int64_t group_size) {
  const TensorArgument words = host_tensor("words", given, {ElementType::kI32}, 1);
  const TensorArgument scales = host_tensor("group_scale8", given_scales, {ElementType::kE4m3}, 1);
  const qd_tensor view = words.view(), scale_view = scales.view();
  Tensor made = Tensor::on_host(ElementType::kE4m3, with_last(words.shape(), 8 * words.size(words.rank() - 1)));
  without_lock(
      [&](qd_error* error) { return qd_words_to_e4m3(&view, &scale_view, group_size, made.as<uint8_t>(), error); });
  return made;
}

}  // namespace
}  // namespace quadrille::python

void bind_prepare(nb::module_& module) {
  namespace python = quadrille::python;
  module.def("prepare", &python::prepare, nb::arg("name"), nb::arg("tensors"), nb::arg("source"), nb::arg("numerics"),
             nb::arg("group_size"), nb::arg("num_parts"), nb::arg("stacked"), nb::arg("place"), nb::arg("layout"));
  module.def("unprepare", &python::unprepare, nb::arg("prepared"));
  module.def("quantize", &python::quantize, nb::arg("weight"), nb::arg("group_size"), nb::arg("quotient"),
             nb::arg("place"));
  module.def("split_scales", &python::split_scales, nb::arg("scales"));
  module.def("scale_tables", &python::scale_tables, nb::arg("group_scale8"));
  module.def("packed_scale_tables", &python::packed_scale_tables, nb::arg("group_scale8"));
  module.def("convert_words", &python::convert_words, nb::arg("words"), nb::arg("conversion"));
  module.def("reorder_words", &python::reorder_words, nb::arg("words"));
  module.def("words_to_e4m3", &python::words_to_e4m3, nb::arg("words"), nb::arg("group_scale8"), nb::arg("group_size"));
}
