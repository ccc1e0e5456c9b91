// SPDX-License-Identifier: Apache-2.0
// The MoE layer and the linear layer over prepared weights: on the CPU through c_host.h, on a GPU through c_api.h on
// the caller's stream. Arguments are checked here; python/quadrille/layers.py has the words for people.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "call_arguments.h"
#include "raise_error.h"
#include "released_gil.h"
#include "streams.h"
#include "tensor.h"
#include "weights.h"

namespace nb = nanobind;

namespace quadrille::python {
namespace {

template <typename T>
T item(nb::dict options, const char* name) {
  return nb::cast<T>(nb::object(options[name]));
}

// Fields that qd_layer_desc and qd_host_layer_desc share.
template <typename Desc>
void read_options(nb::dict options, Desc* desc) {
  desc->scoring = item<int32_t>(options, "scoring");
  desc->num_experts = item<int64_t>(options, "num_experts");
  desc->top_k = item<int64_t>(options, "top_k");
  desc->renormalise = item<bool>(options, "renormalise") ? 1 : 0;
  desc->renorm_epsilon = item<float>(options, "renorm_epsilon");
  desc->routed_scaling = item<float>(options, "routed_scaling");
  desc->num_groups = item<int64_t>(options, "num_groups");
  desc->groups_kept = item<int64_t>(options, "groups_kept");
  desc->weight_on_input = item<bool>(options, "weight_on_input") ? 1 : 0;
  for (auto* mlp : {&desc->experts, &desc->shared}) {
    mlp->activation = item<int32_t>(options, "activation");
    mlp->alpha = item<float>(options, "alpha");
    mlp->limit = item<float>(options, "limit");
    mlp->up_offset = item<float>(options, "up_offset");
  }
}

TensorArgument read_rows(const char* name, nb::handle given, ElementType type, std::vector<int64_t> shape,
                         const char* text, const Rows& rows, uintptr_t stream) {
  TensorArgument tensor(name, given, {type}, stream);
  tensor.expect_shape(shape, text);
  tensor.expect_device(rows.x.device(), "x is");
  tensor.expect_contiguous();
  return tensor;
}

class Layer {
 public:
  Layer(nb::dict weights, nb::dict options, const Place* place, nb::handle stream);
  ~Layer() {
    qd_host_layer_destroy(host_);
    qd_layer_destroy(device_);
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  nb::object run(nb::handle x, nb::handle router_logits, nb::handle topk_ids, nb::handle topk_weights, nb::handle out,
                 nb::handle stream, nb::handle workspace);
  size_t workspace_bytes(int64_t num_tokens) const;
  dlpack::Device where() const { return where_; }
  int64_t hidden() const { return hidden_; }
  int64_t num_experts() const { return num_experts_; }
  int64_t top_k() const { return top_k_; }

 private:
  struct Routing {
    std::vector<TensorArgument> tensors;  // router logits; or ids and weights
  };
  Weights* keep(nb::dict weights, const char* name);
  const TensorArgument* keep_vector(nb::dict weights, const char* name, ElementType type, int64_t size,
                                    uintptr_t stream);
  template <typename Desc, typename Handle>
  void describe(nb::dict weights, nb::dict options, uintptr_t stream, Handle handle, Desc* desc);
  void make_host(nb::dict weights, nb::dict options, const Place& place);
  void make_device(nb::dict weights, nb::dict options, uintptr_t stream);
  Routing read_routing(nb::handle logits, nb::handle ids, nb::handle weights, const Rows& rows, uintptr_t stream) const;
  template <typename Batch>
  void fill(Batch* batch, const Rows& rows, const Routing& routing, void* out) const;
  void run_on_host(const Rows& rows, const Routing& routing, void* out) const;
  void run_on_gpu(const Rows& rows, const Routing& routing, void* out, const Workspace& scratch, void* stream);

  dlpack::Device where_{dlpack::kCpu, 0};
  int64_t hidden_ = 0, num_experts_ = 0, top_k_ = 0;
  qd_host_layer* host_ = nullptr;
  qd_layer* device_ = nullptr;
  std::vector<nb::object> kept_;  // Python owners of weights_
  std::vector<Weights*> weights_;
  std::vector<std::unique_ptr<TensorArgument>> vectors_;  // correction bias, gate of the shared expert
};

Weights* Layer::keep(nb::dict weights, const char* name) {
  if (!weights.contains(name)) return nullptr;
  kept_.emplace_back(weights[name]);
  weights_.push_back(nb::cast<Weights*>(kept_.back()));
  return weights_.back();
}

const TensorArgument* Layer::keep_vector(nb::dict weights, const char* name, ElementType type, int64_t size,
                                         uintptr_t stream) {
  if (!weights.contains(name)) return nullptr;
  auto vector = std::make_unique<TensorArgument>(name, nb::object(weights[name]), ElementTypes{type}, stream);
  vector->expect_shape({size}, "one value each");
  vector->expect_device(where_, "the weights are");
  vector->expect_contiguous();
  vectors_.push_back(std::move(vector));
  return vectors_.back().get();
}

Layer::Layer(nb::dict weights, nb::dict options, const Place* place, nb::handle stream) {
  where_ = nb::cast<Weights*>(nb::object(weights["gate_up"]))->where();
  num_experts_ = item<int64_t>(options, "num_experts");
  top_k_ = item<int64_t>(options, "top_k");
  if (where_.type == dlpack::kCpu) {
    if (place == nullptr) throw nb::value_error("place: expected one for a layer on the cpu, found None");
    make_host(weights, options, *place);
  } else {
    make_device(weights, options, stream_handle(stream));
  }
}

template <typename Desc, typename Handle>
void Layer::describe(nb::dict weights, nb::dict options, uintptr_t stream, Handle handle, Desc* desc) {
  read_options(options, desc);
  const Weights* gate_up = keep(weights, "gate_up");
  hidden_ = gate_up->k();
  desc->experts.gate_up = handle(gate_up);
  desc->experts.down = handle(keep(weights, "down"));
  desc->shared.gate_up = handle(keep(weights, "shared_gate_up"));
  desc->shared.down = handle(keep(weights, "shared_down"));
  if (const auto* bias = keep_vector(weights, "correction_bias", ElementType::kF32, num_experts_, stream)) {
    desc->correction_bias = bias->as<const float>();
  }
  if (const auto* gate = keep_vector(weights, "shared_gate", ElementType::kBf16, hidden_, stream)) {
    desc->shared_gate_weight = gate->data();
  }
}

void Layer::make_host(nb::dict weights, nb::dict options, const Place& place) {
  qd_host_layer_desc desc;
  qd_host_layer_desc_init(&desc);
  desc.rounding = item<int32_t>(options, "rounding");
  describe(
      weights, options, kLegacyStream, [](const Weights* w) { return w == nullptr ? nullptr : w->host(); }, &desc);
  qd_error error;
  raise_error(qd_host_layer_create(place.host(), &desc, &host_, &error), error);
}

void Layer::make_device(nb::dict weights, nb::dict options, uintptr_t stream) {
  refuse_rounding_on_gpu(item<int32_t>(options, "rounding"));
  qd_layer_desc desc;
  qd_layer_desc_init(&desc);
  describe(
      weights, options, stream, [](const Weights* w) { return w == nullptr ? nullptr : w->device(); }, &desc);
  qd_error error;
  raise_error(qd_layer_create(&desc, &device_, &error), error);
}

Layer::Routing Layer::read_routing(nb::handle logits, nb::handle ids, nb::handle weights, const Rows& rows,
                                   uintptr_t stream) const {
  Routing routing;
  if (!logits.is_none()) {
    if (!ids.is_none() || !weights.is_none()) {
      throw nb::value_error("router_logits: expected either these or topk_ids and topk_weights, found both");
    }
    routing.tensors.push_back(read_rows("router_logits", logits, ElementType::kF32, {rows.count(), num_experts_},
                                        "tokens, experts", rows, stream));
    return routing;
  }
  if (ids.is_none() || weights.is_none()) {
    throw nb::value_error("router_logits: expected these, or topk_ids and topk_weights, found None");
  }
  routing.tensors.push_back(
      read_rows("topk_ids", ids, ElementType::kI32, {rows.count(), top_k_}, "tokens, top_k", rows, stream));
  routing.tensors.push_back(
      read_rows("topk_weights", weights, ElementType::kF32, {rows.count(), top_k_}, "tokens, top_k", rows, stream));
  return routing;
}

template <typename Batch>
void Layer::fill(Batch* batch, const Rows& rows, const Routing& routing, void* out) const {
  batch->num_tokens = rows.count();
  batch->x = rows.x.data();
  batch->out = out;
  if (routing.tensors.size() == 1) {
    batch->router_logits = routing.tensors[0].as<const float>();
    return;
  }
  batch->topk_ids = routing.tensors[0].as<const int32_t>();
  batch->topk_weights = routing.tensors[1].as<const float>();
}

void Layer::run_on_host(const Rows& rows, const Routing& routing, void* out) const {
  qd_host_batch batch;
  qd_host_batch_init(&batch);
  fill(&batch, rows, routing, out);
  batch.type = static_cast<int32_t>(rows.x.type());
  qd_error error;
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = qd_host_layer_run(host_, &batch, &error);
  }
  raise_error(result, error);
}

void Layer::run_on_gpu(const Rows& rows, const Routing& routing, void* out, const Workspace& scratch, void* stream) {
  qd_batch batch;
  qd_batch_init(&batch);
  fill(&batch, rows, routing, out);
  qd_streams streams;
  qd_streams_init(&streams);
  streams.main = stream;
  qd_error error;
  qd_result result = QD_OK;
  {
    const ReleasedGil released;
    result = qd_layer_run(device_, &batch, scratch.memory(), scratch.bytes(), &streams, nullptr, &error);
  }
  for (Weights* weights : weights_) weights->used_on(stream);
  raise_error(result, error);
}

size_t Layer::workspace_bytes(int64_t num_tokens) const {
  if (device_ == nullptr) return 0;
  size_t bytes = 0;
  qd_error error;
  raise_error(qd_layer_workspace_bytes(device_, num_tokens, &bytes, &error), error);
  return bytes;
}

nb::object Layer::run(nb::handle x, nb::handle router_logits, nb::handle topk_ids, nb::handle topk_weights,
                      nb::handle given_out, nb::handle stream, nb::handle workspace) {
  const uintptr_t handle = call_stream(stream, workspace, where_);
  const Rows rows(x, hidden_, hidden_, where_, handle);
  const Routing routing = read_routing(router_logits, topk_ids, topk_weights, rows, handle);
  Out out(given_out, rows, where_, handle);
  if (where_.type == dlpack::kCpu) {
    out.make(nullptr);
    run_on_host(rows, routing, out.data());
    return out.result();
  }
  CallStream call(where_.id, handle);
  out.make(call.stream());
  {
    const Workspace scratch(workspace, workspace_bytes(rows.count()), where_, handle, call.stream());
    run_on_gpu(rows, routing, out.data(), scratch, call.stream());
  }
  out.written(call.stream());
  call.finish();
  return out.result();
}

}  // namespace
}  // namespace quadrille::python

void bind_layer(nb::module_& module) {
  namespace python = quadrille::python;
  using python::Layer;
  nb::class_<Layer>(module, "Layer", "An MoE layer over prepared weights.")
      .def(nb::init<nb::dict, nb::dict, const python::Place*, nb::handle>(), nb::arg("weights"), nb::arg("options"),
           nb::arg("place").none(), nb::arg("stream").none())
      .def_prop_ro("device", [](const Layer& l) { return python::device_text(l.where()); })
      .def_prop_ro("hidden_size", &Layer::hidden)
      .def_prop_ro("num_experts", &Layer::num_experts)
      .def_prop_ro("top_k", &Layer::top_k)
      .def("workspace_bytes", &Layer::workspace_bytes, nb::arg("num_tokens"))
      .def("run", &Layer::run, nb::arg("x"), nb::arg("router_logits").none(), nb::arg("topk_ids").none(),
           nb::arg("topk_weights").none(), nb::arg("out").none(), nb::arg("stream").none(),
           nb::arg("workspace").none());
}
