// SPDX-License-Identifier: Apache-2.0
// One linear layer over prepared weights of one matrix, as bind_layer.cpp does it for many.
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "call_arguments.h"
#include "raise_error.h"
#include "released_gil.h"
#include "streams.h"
#include "weights.h"

namespace nb = nanobind;

namespace quadrille::python {
namespace {

class Linear {
 public:
  Linear(nb::object weights, int32_t rounding, nb::object place)
      : kept_{weights, place}, weights_(nb::cast<Weights*>(weights)), rounding_(rounding) {
    if (weights_->on_gpu()) {
      refuse_rounding_on_gpu(rounding);
    } else {
      place_ = nb::cast<const Place*>(place);
    }
  }

  nb::object run(nb::handle x, nb::handle given_out, nb::handle stream, nb::handle workspace) {
    const dlpack::Device where = weights_->where();
    const uintptr_t handle = call_stream(stream, workspace, where);
    const Rows rows(x, weights_->k(), weights_->n(), where, handle);
    Out out(given_out, rows, where, handle);
    if (where.type == dlpack::kCpu) {
      out.make(nullptr);
      run_on_host(rows, out.data());
      return out.result();
    }
    CallStream call(where.id, handle);
    out.make(call.stream());
    {
      const Workspace scratch(workspace, workspace_bytes(rows.count()), where, handle, call.stream());
      run_on_gpu(rows, out.data(), scratch, call.stream());
    }
    out.written(call.stream());
    call.finish();
    return out.result();
  }

  size_t workspace_bytes(int64_t num_rows) const {
    if (!weights_->on_gpu()) return 0;
    size_t bytes = 0;
    qd_error error;
    raise_error(qd_linear_workspace_bytes(weights_->device(), num_rows, &bytes, &error), error);
    return bytes;
  }
  const Weights& weights() const { return *weights_; }

 private:
  void run_on_host(const Rows& rows, void* out) const {
    qd_error error;
    qd_result result = QD_OK;
    {
      const ReleasedGil released;
      result = qd_host_linear_run(place_->host(), weights_->host(), rounding_, static_cast<int32_t>(rows.x.type()),
                                  rows.x.data(), rows.count(), out, &error);
    }
    raise_error(result, error);
  }
  void run_on_gpu(const Rows& rows, void* out, const Workspace& scratch, void* stream) {
    qd_error error;
    qd_result result = QD_OK;
    {
      const ReleasedGil released;
      result = qd_linear_run(weights_->device(), rows.x.data(), rows.count(), out, scratch.memory(), scratch.bytes(),
                             stream, &error);
    }
    weights_->used_on(stream);
    raise_error(result, error);
  }

  std::vector<nb::object> kept_;
  Weights* weights_;
  const Place* place_ = nullptr;
  int32_t rounding_;
};

}  // namespace
}  // namespace quadrille::python

void bind_linear(nb::module_& module) {
  namespace python = quadrille::python;
  using python::Linear;
  nb::class_<Linear>(module, "Linear", "A linear layer over prepared weights.")
      .def(nb::init<nb::object, int32_t, nb::object>(), nb::arg("weights"), nb::arg("rounding"),
           nb::arg("place").none())
      .def_prop_ro("device", [](const Linear& l) { return python::device_text(l.weights().where()); })
      .def_prop_ro("in_features", [](const Linear& l) { return l.weights().k(); })
      .def_prop_ro("out_features", [](const Linear& l) { return l.weights().n(); })
      .def("workspace_bytes", &Linear::workspace_bytes, nb::arg("num_rows"))
      .def("run", &Linear::run, nb::arg("x"), nb::arg("out").none(), nb::arg("stream").none(),
           nb::arg("workspace").none());
}
