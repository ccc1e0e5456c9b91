// SPDX-License-Identifier: Apache-2.0
// Everything is enqueued on two streams of the command's own; the host waits at the end of the work, and after each
// replay that it times.
#include "cli/layer_device.h"

#include <algorithm>

#include "device/device.h"
#include "device/order.h"
#include "moe/device_layer.h"
#include "numerics/bf16.h"
#include "prepare/device_prepare.h"

namespace quadrille::cli {
namespace {

using device::Buffer;
using device::OwnedEvent;
using device::OwnedStream;
using device::Stream;
using kernels::DeviceTable;

// One prepared stack with its memory and its status word.
struct DeviceWeights {
  Buffer weights, channel_scale, status;
  moe::DeviceLinear linear;
};

struct PrepareEvents {
  std::vector<OwnedEvent> owned;
  prepare::PrepareStreams streams;
};

Result<PrepareEvents> make_prepare_streams(Stream main, Stream copies) {
  PrepareEvents out;
  out.streams.prepare = main;
  out.streams.copy = copies;
  for (device::Event* event :
       {&out.streams.source_copied[0], &out.streams.source_copied[1], &out.streams.staging_free[0],
        &out.streams.staging_free[1], &out.streams.staging_ready, &out.streams.done}) {
    QD_TRY(OwnedEvent made, OwnedEvent::create());
    *event = made.get();
    out.owned.push_back(std::move(made));
  }
  return out;
}

// `parts` 2: gate rows, then up rows.
Result<DeviceWeights> prepare_on_gpu(const DeviceTable& table, const LayerWeights& from, int64_t num_experts,
                                     int32_t parts, kernels::Numerics numerics, const prepare::PrepareStreams& on) {
  const auto pieces = static_cast<size_t>(num_experts * parts);
  std::vector<prepare::DeviceW4Expert> experts(static_cast<size_t>(num_experts));
  for (size_t i = 0; i < pieces; ++i) {
    prepare::DeviceW4Expert& expert = experts[i / static_cast<size_t>(parts)];
    expert.codes[i % static_cast<size_t>(parts)] = from.packed.data() + i * (from.packed.size() / pieces);
    expert.scales[i % static_cast<size_t>(parts)] = from.scales.data() + i * (from.scales.size() / pieces);
  }
  prepare::DeviceW4Source source;
  source.numerics = numerics;
  source.part_n = from.n / parts;
  source.num_parts = parts;
  source.k = from.k;
  source.group_size = from.group_size;
  source.experts = experts;
  source.on_host = true;
  QD_TRY(const prepare::DeviceW4Sizes sizes, prepare::device_w4_sizes(source));
  DeviceWeights out;
  QD_TRY(out.weights, Buffer::allocate(sizes.weight_bytes, on.prepare));
  QD_TRY(out.channel_scale, Buffer::allocate(sizes.channel_scale_bytes, on.prepare));
  QD_TRY(out.status, Buffer::allocate(sizeof(uint32_t), on.prepare));
  QD_TRY(const Buffer staging, Buffer::allocate(sizes.staging_bytes, on.prepare));
  QD_TRY_STATUS(device::fill(out.status.get(), 0, sizeof(uint32_t), on.prepare));
  const prepare::DeviceW4Destination to{out.weights.as<uint8_t>(), out.channel_scale.as<float>(), nullptr};
  QD_TRY_STATUS(prepare::prepare_on_device(table, source, to, staging.get(), on, out.status.as<uint32_t>()));
  out.linear = {num_experts,
                from.n,
                from.k,
                from.group_size,
                numerics,
                out.weights.as<uint8_t>(),
                sizes.expert_stride,
                out.channel_scale.as<float>(),
                nullptr};
  return out;
}

template <typename T>
Result<Buffer> upload(const std::vector<T>& host, Stream stream) {
  QD_TRY(Buffer buffer, Buffer::allocate(host.size() * sizeof(T), stream));
  QD_TRY_STATUS(device::copy_to_device(buffer.get(), host.data(), host.size() * sizeof(T), stream));
  return buffer;
}

// The shapes alone, for the checks before any weight is touched.
moe::DeviceMoeLayer layer_shapes(const LayerFile& file, kernels::Numerics numerics) {
  moe::DeviceMoeLayer layer;
  layer.rule = file.layer.rule;
  layer.experts.hidden = file.hidden;
  layer.experts.width = file.width;
  const auto shape = [&](const LayerWeights& w) {
    return moe::DeviceLinear{file.num_experts, w.n, w.k, w.group_size, numerics, nullptr, 0, nullptr, nullptr};
  };
  layer.experts.gate_up = shape(file.w13);
  layer.experts.down = shape(file.w2);
  return layer;
}

Result<float> time_graph(const device::Graph& graph, int64_t repeat, Stream stream) {
  constexpr int64_t kWarmUp = 3;
  QD_TRY(const OwnedEvent begin, OwnedEvent::create(true));
  QD_TRY(const OwnedEvent end, OwnedEvent::create(true));
  std::vector<float> times;
  for (int64_t i = 0; i < kWarmUp + repeat; ++i) {
    QD_TRY_STATUS(device::record(begin.get(), stream));
    QD_TRY_STATUS(graph.launch(stream));
    QD_TRY_STATUS(device::record(end.get(), stream));
    QD_TRY_STATUS(device::synchronize(end.get()));
    QD_TRY(const float ms, device::elapsed_ms(begin.get(), end.get()));
    if (i >= kWarmUp) times.push_back(1000 * ms);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

Status check_flags(uint32_t flags, const char* name) {
  if (flags == 0) return {};
  return make_error(ErrorCode::kInvalidData, "{}: expected finite weight scales, found one that is NaN or infinite",
                    name);
}

}  // namespace

Status layer_device_available() {
  QD_TRY_STATUS(kernels::device_table());
  return device::available(0);
}

Result<DeviceLayerRun> run_layer_on_device(const LayerFile& file, kernels::Numerics numerics, int64_t repeat) {
  moe::DeviceMoeLayer layer = layer_shapes(file, numerics);
  QD_TRY_STATUS(moe::can_run(layer, file.num_tokens));
  QD_TRY(const DeviceTable* table, kernels::device_table());
  QD_TRY_STATUS(device::use(0));
  QD_TRY(const device::Properties properties, device::properties(0));
  QD_TRY(const OwnedStream main, OwnedStream::create());
  QD_TRY(const OwnedStream copies, OwnedStream::create());
  const Stream stream = main.get();
  QD_TRY(const PrepareEvents on, make_prepare_streams(stream, copies.get()));
  QD_TRY(const DeviceWeights w13, prepare_on_gpu(*table, file.w13, file.num_experts, 2, numerics, on.streams));
  QD_TRY(const DeviceWeights w2, prepare_on_gpu(*table, file.w2, file.num_experts, 1, numerics, on.streams));
  layer.experts.gate_up = w13.linear;
  layer.experts.down = w2.linear;

  std::vector<uint16_t> x(file.x.size());
  std::transform(file.x.begin(), file.x.end(), x.begin(), numerics::bf16_from_f32);
  QD_TRY(const Buffer x_there, upload(x, stream));
  QD_TRY(const Buffer ids, upload(file.topk_ids, stream));
  QD_TRY(const Buffer weights, upload(file.topk_weights, stream));
  QD_TRY(const Buffer out_there, Buffer::allocate(2 * x.size(), stream));
  QD_TRY(const Buffer workspace, Buffer::allocate(moe::workspace_bytes(layer, file.num_tokens), stream));
  moe::DeviceBatch batch;
  batch.num_tokens = file.num_tokens;
  batch.x = x_there.as<uint16_t>();
  batch.topk_ids = ids.as<int32_t>();
  batch.topk_weights = weights.as<float>();
  batch.out = out_there.as<uint16_t>();
  moe::DeviceStreams streams;
  streams.main = stream;
  const auto enqueue = [&] {
    return moe::run_device_layer(*table, layer, batch, workspace.get(), workspace.size_bytes(), streams, nullptr);
  };
  QD_TRY_STATUS(enqueue());

  DeviceLayerRun run;
  run.device = properties.name;
  if (repeat > 0) {
    QD_TRY(const device::Graph graph, device::Graph::capture(stream, enqueue));
    QD_TRY(run.median_us, time_graph(graph, repeat, stream));
  }
  run.out.resize(x.size());
  uint32_t flags[2] = {};
  QD_TRY_STATUS(device::copy_to_host(run.out.data(), out_there.get(), 2 * run.out.size(), stream));
  QD_TRY_STATUS(device::copy_to_host(&flags[0], w13.status.get(), sizeof flags[0], stream));
  QD_TRY_STATUS(device::copy_to_host(&flags[1], w2.status.get(), sizeof flags[1], stream));
  QD_TRY_STATUS(device::synchronize(stream));
  QD_TRY_STATUS(check_flags(flags[0], "w13"));
  QD_TRY_STATUS(check_flags(flags[1], "w2"));
  return run;
}

}  // namespace quadrille::cli
