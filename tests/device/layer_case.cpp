// SPDX-License-Identifier: Apache-2.0
// Builds and runs the layer on the device.
#include "device/layer_case.h"

#include "device/fill.h"
#include "device/random_data.h"

namespace quadrille::testing {
namespace {

template <typename T>
std::vector<T> rows_of(const std::vector<T>& values, const std::vector<int64_t>& keys, int64_t width) {
  std::vector<T> rows;
  rows.reserve(keys.size() * static_cast<size_t>(width));
  for (int64_t key : keys) rows.insert(rows.end(), values.begin() + key * width, values.begin() + (key + 1) * width);
  return rows;
}

// The inputs of one call on the device.
struct Inputs {
  device::Buffer x, logits, ids, weights;
};

Inputs make_inputs(const LayerSpec& spec, const LayerRoutes& routes, const Call& call, device::Stream stream) {
  const auto tokens = static_cast<int64_t>(call.keys.size());
  Inputs in;
  in.x = poisoned<uint16_t>(tokens * spec.hidden, stream);
  const device::Buffer keys = on_device(call.keys, stream);
  fill_activations(in.x.as<uint16_t>(), keys.as<int64_t>(), tokens, spec.hidden, spec.nonfinite, spec.seed, stream);
  if (spec.input != RouteInput::kIds && !call.as_ids) {
    in.logits = on_device(rows_of(routes.logits, call.keys, spec.experts), stream);
  } else {
    in.ids = on_device(rows_of(routes.ids, call.keys, spec.top_k), stream);
    in.weights = on_device(rows_of(routes.weights, call.keys, spec.top_k), stream);
  }
  return in;
}

// Elements that still hold the poison, which no rounding point stores.
std::string unwritten(const std::vector<uint16_t>& out, int64_t width) {
  size_t count = 0, first = 0;
  for (size_t i = out.size(); i-- > 0;) {
    if (out[i] != 0xffff) continue;
    ++count;
    first = i;
  }
  if (count == 0) return "";
  return fmt::format("{} of {} outputs not written, first at row {} column {}; ", count, out.size(),
                     first / static_cast<size_t>(width), first % static_cast<size_t>(width));
}

}  // namespace

LayerCase::LayerCase(const LayerSpec& spec, ThreadPool* pool)
    : spec_(spec),
      pool_(pool),
      table_(must(kernels::device_table())),
      main_(must(device::OwnedStream::create())),
      side_(must(device::OwnedStream::create())),
      begins_(must(device::OwnedEvent::create())),
      ends_(must(device::OwnedEvent::create())),
      routes_(make_routes(spec, pool)) {
  layer_.rule = spec.rule();
  if (!routes_.correction_bias.empty()) {
    correction_bias_ = on_device(routes_.correction_bias, main_.get());
    layer_.correction_bias = correction_bias_.as<float>();
  }
  if (const auto map = spec.expert_map(); !map.empty()) {
    expert_map_ = on_device(map, main_.get());
    layer_.expert_map = expert_map_.as<int32_t>();
  }
  add_mlp(&layer_.experts, false);
  if (spec.shared == Shared::kNone) return;
  add_mlp(&layer_.shared.emplace(), true);
  if (spec.shared != Shared::kGated) return;
  shared_gate_ = poisoned<uint16_t>(spec.hidden, main_.get());
  fill_small_weights(shared_gate_.as<uint16_t>(), spec.hidden, hash(spec.seed, 15), main_.get());
  must(device::synchronize(main_.get()));
  layer_.shared_gate_weight = shared_gate_.as<uint16_t>();
}

void LayerCase::add_mlp(moe::DeviceMlp* mlp, bool shared) {
  mlp->hidden = spec_.hidden;
  mlp->width = spec_.width;
  mlp->activation = spec_.activation_rule();
  stacks_.push_back(make_device_stack(*table_, gate_up_stack(spec_, shared), main_.get()));
  mlp->gate_up = stacks_.back().linear;
  stacks_.push_back(make_device_stack(*table_, down_stack(spec_, shared), main_.get()));
  mlp->down = stacks_.back().linear;
}

moe::DeviceStreams LayerCase::streams(bool side) const {
  moe::DeviceStreams streams;
  streams.main = main_.get();
  if (!side) return streams;
  streams.side = side_.get();
  streams.shared_begins = begins_.get();
  streams.shared_ends = ends_.get();
  return streams;
}

std::vector<uint16_t> LayerCase::run(const Call& call, std::string* problems) {
  const auto tokens = static_cast<int64_t>(call.keys.size());
  const device::Stream stream = main_.get();
  must(moe::can_run(layer_, std::max(tokens, call.max_tokens)));
  const Inputs in = make_inputs(spec_, routes_, call, stream);
  Fenced out(static_cast<size_t>(tokens * spec_.hidden) * 2, kPoison, stream);
  Fenced workspace(moe::workspace_bytes(layer_, std::max(tokens, call.max_tokens), call.options), call.workspace_byte,
                   stream);
  Fenced status(sizeof(uint32_t), 0, stream);
  moe::DeviceBatch batch;
  batch.num_tokens = tokens;
  batch.x = in.x.as<uint16_t>();
  batch.router_logits = in.logits.as<float>();
  batch.topk_ids = in.ids.as<int32_t>();
  batch.topk_weights = in.weights.as<float>();
  batch.out = reinterpret_cast<uint16_t*>(out.get());
  const auto enqueue = [&]() -> Status {
    return moe::run_device_layer(*table_, layer_, batch, workspace.get(), workspace.size_bytes(),
                                 streams(call.side_stream), reinterpret_cast<uint32_t*>(status.get()), call.options);
  };
  if (call.graph_replays == 0) {
    must(enqueue());
  } else {
    const device::Graph graph = must(device::Graph::capture(stream, enqueue));
    for (int i = 0; i < call.graph_replays; ++i) {
      out.refill(kPoison);
      must(graph.launch(stream));
    }
    must(device::synchronize(stream));
  }
  std::vector<uint16_t> rows = on_host<uint16_t>(out.get(), tokens * spec_.hidden, stream);
  *problems += unwritten(rows, spec_.hidden);
  if (!out.intact()) *problems += "memory around the output was written; ";
  if (!workspace.intact()) *problems += "memory around the workspace was written; ";
  const uint32_t bits = on_host<uint32_t>(status.get(), 1, stream)[0];
  if (bits != 0 || !status.intact()) *problems += fmt::format("status {:#x}; ", bits);
  return rows;
}

}  // namespace quadrille::testing
