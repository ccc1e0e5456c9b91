// SPDX-License-Identifier: Apache-2.0
// Builds and runs the layer on the device.
#include "device/layer_case.h"

#include <algorithm>
#include <iterator>
#include <limits>

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

// The rows' ids, with junk for -1 where the call wants it.
std::vector<int32_t> ids_of(const LayerSpec& spec, const LayerRoutes& routes, const Call& call) {
  std::vector<int32_t> ids = rows_of(routes.ids, call.keys, spec.top_k);
  const int32_t junk[] = {static_cast<int32_t>(spec.experts), -2, std::numeric_limits<int32_t>::max(),
                          std::numeric_limits<int32_t>::min()};
  for (size_t i = 0; i < ids.size() && call.junk_ids; ++i) {
    if (ids[i] == -1) ids[i] = junk[i % std::size(junk)];
  }
  return ids;
}

// The inputs of one call on the device.
moe::DeviceBatch make_batch(const LayerSpec& spec, const LayerRoutes& routes, const Call& call, Memory* memory,
                            device::Stream stream) {
  moe::DeviceBatch batch;
  batch.num_tokens = static_cast<int64_t>(call.keys.size());
  auto* x = memory->take<uint16_t>(batch.num_tokens * spec.hidden, 16, stream);
  const int64_t* keys = memory->copy_of(call.keys, stream);
  fill_activations(x, keys, batch.num_tokens, spec.hidden, spec.nonfinite, spec.seed, stream);
  batch.x = x;
  if (spec.input != RouteInput::kIds && !call.as_ids) {
    batch.router_logits = memory->copy_of(rows_of(routes.logits, call.keys, spec.experts), stream);
  } else {
    batch.topk_ids = memory->copy_of(ids_of(spec, routes, call), stream);
    batch.topk_weights = memory->copy_of(rows_of(routes.weights, call.keys, spec.top_k), stream);
  }
  return batch;
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

LayerCase::LayerCase(const LayerSpec& spec, ThreadPool* pool, std::unique_ptr<Memory> memory)
    : spec_(spec),
      pool_(pool),
      table_(must(kernels::device_table())),
      main_(must(device::OwnedStream::create())),
      side_(must(device::OwnedStream::create())),
      begins_(must(device::OwnedEvent::create())),
      ends_(must(device::OwnedEvent::create())),
      routes_(make_routes(spec, pool)),
      memory_(std::move(memory)) {
  layer_.rule = spec.rule();
  if (!routes_.correction_bias.empty()) {
    layer_.correction_bias = memory_->copy_of(routes_.correction_bias, main_.get());
  }
  if (const auto map = spec.expert_map(); !map.empty()) layer_.expert_map = memory_->copy_of(map, main_.get());
  add_mlp(&layer_.experts, false);
  if (spec.shared == Shared::kNone) return;
  add_mlp(&layer_.shared.emplace(), true);
  if (spec.shared != Shared::kGated) return;
  auto* gate = memory_->take<uint16_t>(spec.hidden, 16, main_.get());
  fill_small_weights(gate, spec.hidden, hash(spec.seed, 15), main_.get());
  layer_.shared_gate_weight = gate;
}

void LayerCase::add_mlp(moe::DeviceMlp* mlp, bool shared) {
  mlp->hidden = spec_.hidden;
  mlp->width = spec_.width;
  mlp->activation = spec_.activation_rule();
  mlp->gate_up = make_device_stack(*table_, gate_up_stack(spec_, shared), memory_.get(), main_.get());
  mlp->down = make_device_stack(*table_, down_stack(spec_, shared), memory_.get(), main_.get());
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
  const int64_t max_tokens = std::max(tokens, call.max_tokens);
  const device::Stream stream = main_.get();
  must(moe::can_run(layer_, max_tokens));
  const std::unique_ptr<Memory> memory = memory_->another();
  moe::DeviceBatch batch = make_batch(spec_, routes_, call, memory.get(), stream);
  batch.out = memory->take<uint16_t>(tokens * spec_.hidden, 16, stream);
  const size_t size = moe::workspace_bytes(layer_, max_tokens, call.options);
  void* workspace = memory->take_bytes(size, 256, call.workspace_byte, stream);
  auto* status = memory->take<uint32_t>(1, 4, stream, 0);
  const auto enqueue = [&]() -> Status {
    return moe::run_device_layer(*table_, layer_, batch, workspace, size, streams(call.side_stream), status,
                                 call.options);
  };
  if (call.graph_replays == 0) {
    must(enqueue());
  } else {
    const device::Graph graph = must(device::Graph::capture(stream, enqueue));
    for (int i = 0; i < call.graph_replays; ++i) {
      must(device::fill(batch.out, kPoison, static_cast<size_t>(tokens * spec_.hidden) * 2, stream));
      must(graph.launch(stream));
    }
    must(device::synchronize(stream));
  }
  std::vector<uint16_t> rows = on_host<uint16_t>(batch.out, tokens * spec_.hidden, stream);
  *problems += unwritten(rows, spec_.hidden);
  const uint32_t bits = on_host<uint32_t>(status, 1, stream)[0];
  const bool junk = call.junk_ids && std::count(routes_.ids.begin(), routes_.ids.end(), -1) > 0;
  if (bits != (junk ? kernels::kStatusBadExpertId : 0u)) *problems += fmt::format("status {:#x}; ", bits);
  const std::string harmed = memory->harmed(stream) + memory_->harmed(stream);
  if (!harmed.empty()) *problems += "memory was written around a " + harmed;
  return rows;
}

}  // namespace quadrille::testing
