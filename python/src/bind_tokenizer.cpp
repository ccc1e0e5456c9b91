// SPDX-License-Identifier: Apache-2.0
// quadrille._native.Tokenizer: the tokenizer functions of c_model.h. Python's side is python/quadrille/tokenizer.py.
#include "bind_tokenizer.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "owned_string.h"

namespace quadrille::python {

namespace nb = nanobind;

Tokenizer::Tokenizer(qd_tokenizer* handle) : handle_(handle, &qd_tokenizer_free) {}

Tokenizer Tokenizer::load(const std::string& folder) {
  qd_tokenizer* handle = nullptr;
  qd_error error = {};
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = qd_tokenizer_load(folder.c_str(), &handle, &error);
  }
  raise_error(result, error);
  return Tokenizer(handle);
}

std::vector<int32_t> Tokenizer::encode(const std::string& text, bool add_special, bool parse_special) const {
  qd_ids ids = {};
  qd_error error = {};
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = qd_tokenizer_encode(handle_.get(), text.data(), text.size(), add_special, parse_special, &ids, &error);
  }
  raise_error(result, error);
  const std::vector<int32_t> copy(ids.data, ids.data + ids.size);
  qd_ids_free(&ids);
  return copy;
}

nb::str Tokenizer::decode(const std::vector<int32_t>& ids, bool skip_special) const {
  return text_of([&](qd_string* text, qd_error* error) {
    return qd_tokenizer_decode(handle_.get(), ids.data(), static_cast<int64_t>(ids.size()), skip_special, text, error);
  });
}

nb::str Tokenizer::describe() const {
  return text_of([&](qd_string* json, qd_error* error) { return qd_tokenizer_describe(handle_.get(), json, error); });
}

int32_t Tokenizer::token_id(const std::string& token) const {
  int32_t id = -1;
  qd_error error = {};
  raise_error(qd_tokenizer_token_id(handle_.get(), token.data(), token.size(), &id, &error), error);
  return id;
}

nb::str Tokenizer::token_text(int32_t id) const {
  return text_of(
      [&](qd_string* text, qd_error* error) { return qd_tokenizer_token_text(handle_.get(), id, text, error); });
}

nb::str Tokenizer::render_chat(const std::string& messages, bool add_generation_prompt,
                               const std::string& variables) const {
  return text_of([&](qd_string* prompt, qd_error* error) {
    return qd_tokenizer_render_chat(handle_.get(), messages.data(), messages.size(), add_generation_prompt,
                                    variables.data(), variables.size(), prompt, error);
  });
}

}  // namespace quadrille::python

void bind_tokenizer(nanobind::module_& module) {
  namespace nb = nanobind;
  using quadrille::python::Tokenizer;
  nb::class_<Tokenizer>(module, "Tokenizer", "qd_tokenizer; quadrille.Tokenizer is what to use.", nb::is_final())
      .def_static("load", &Tokenizer::load, nb::arg("folder"))
      .def("describe", &Tokenizer::describe)
      .def("encode", &Tokenizer::encode, nb::arg("text"), nb::arg("add_special"), nb::arg("parse_special"))
      .def("decode", &Tokenizer::decode, nb::arg("ids"), nb::arg("skip_special"))
      .def("token_id", &Tokenizer::token_id, nb::arg("token"))
      .def("token_text", &Tokenizer::token_text, nb::arg("id"))
      .def("render_chat", &Tokenizer::render_chat, nb::arg("messages"), nb::arg("add_generation_prompt"),
           nb::arg("variables"));
}
