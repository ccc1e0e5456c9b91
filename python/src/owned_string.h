// SPDX-License-Identifier: Apache-2.0
// Text that the library made, as Python's str. Used by the bindings of functions that give text or JSON.
#pragma once

#include <nanobind/nanobind.h>

#include "quadrille/c_api.h"
#include "raise_error.h"
#include "released_gil.h"

namespace quadrille::python {

// Frees what a call put into it.
struct OwnedString {
  qd_string string = {};
  OwnedString() = default;
  OwnedString(const OwnedString&) = delete;
  OwnedString& operator=(const OwnedString&) = delete;
  ~OwnedString() { qd_string_free(&string); }
  nanobind::str str() const { return nanobind::str(string.data, string.size); }
};

// Runs `call(qd_string*, qd_error*)` without the interpreter lock.
template <typename Call>
nanobind::str text_of(const Call& call) {
  OwnedString text;
  qd_error error = {};
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = call(&text.string, &error);
  }
  raise_error(result, error);
  return text.str();
}

}  // namespace quadrille::python
