// SPDX-License-Identifier: Apache-2.0
// Turns what a qd_ function returns into the Python exception of its kind. Called by every binding.
#pragma once

#include <nanobind/nanobind.h>
#include <quadrille/c_api.h>

#include <cstring>

namespace quadrille::python {

// Raises unless `result` is QD_OK; the text is the library's own: expected, found, where, what to do.
inline void raise_error(qd_result result, const qd_error& error) {
  if (result == QD_OK) return;
  PyObject* kind = PyExc_RuntimeError;  // QD_INTERNAL, QD_CANCELLED
  switch (result) {
    case QD_INVALID_ARGUMENT:
    case QD_INVALID_DATA:
      kind = PyExc_ValueError;
      break;
    case QD_UNSUPPORTED:
      kind = PyExc_NotImplementedError;
      break;
    case QD_NOT_FOUND:
      kind = PyExc_FileNotFoundError;
      break;
    case QD_IO:
      kind = PyExc_OSError;
      break;
    case QD_CAPACITY:
      kind = PyExc_MemoryError;
      break;
    default:
      break;
  }
  // A message that was cut to fit may end inside of a character.
  PyObject* text = PyUnicode_DecodeUTF8(error.message, static_cast<Py_ssize_t>(std::strlen(error.message)), "replace");
  if (text != nullptr) PyErr_SetObject(kind, text);
  Py_XDECREF(text);
  throw nanobind::python_error();
}

}  // namespace quadrille::python
