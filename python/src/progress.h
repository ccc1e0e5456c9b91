// SPDX-License-Identifier: Apache-2.0
// What a long native call reports, brought to Python: it looks for signals (Ctrl-C) and calls the caller's function,
// and what either raises ends the call. Used by the bindings of whatever takes a qd_progress.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>

#include "quadrille/c_api.h"
#include "raise_error.h"
#include "released_gil.h"

namespace quadrille::python {

// Runs `call(const qd_progress*, qd_error*)` without the interpreter lock. `callback`: None, or called with (what,
// done, total). Raises what a signal handler or the callback raised, else the error of the call.
template <typename Call>
void run_with_progress(const nanobind::object& callback, const Call& call) {
  struct Context {
    ReleasedGil* released;
    const nanobind::object& callback;
    std::exception_ptr raised;
  };
  const auto report = [](void* opaque, const char* what, uint64_t done, uint64_t total) -> int32_t {
    Context& context = *static_cast<Context*>(opaque);
    context.released->acquire();
    try {
      if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
      if (!context.callback.is_none()) context.callback(what, done, total);
    } catch (...) {
      context.raised = std::current_exception();
    }
    context.released->release();
    return context.raised ? 1 : 0;
  };
  qd_error error = {};
  qd_result result = QD_OK;
  std::exception_ptr raised;
  {
    ReleasedGil released;
    Context context{&released, callback, nullptr};
    const qd_progress progress{report, &context};
    result = call(&progress, &error);
    raised = context.raised;
  }
  if (raised) std::rethrow_exception(raised);
  raise_error(result, error);
}

}  // namespace quadrille::python
