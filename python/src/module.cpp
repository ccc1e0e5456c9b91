// SPDX-License-Identifier: Apache-2.0
// quadrille._native: the C functions of libquadrille as Python sees them.
#include "bindings.h"
#include "quadrille/c_api.h"
#include "released_gil.h"

NB_MODULE(_native, module) {
  nanobind::set_leak_warnings(false);  // the library never prints; the tests count objects themselves
  module.doc() = "The compiled part of quadrille.";
  module.def("version", &qd_version, "Of library and package.");
  quadrille::python::guard_exit(module);
  bind_tensor(module);
  bind_weights(module);
  bind_layer(module);
  bind_linear(module);
  bind_prepare(module);
  bind_tokenizer(module);
  bind_model(module);
  bind_folders(module);
}
