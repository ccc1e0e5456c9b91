// SPDX-License-Identifier: Apache-2.0
// Prepared weights: memory, preparation on the caller's streams, and the event that readers wait for.
#include "api/weights.h"

#include <memory>
#include <vector>

#include "api/call.h"
#include "kernels/api/device_table.h"
#include "prepare/device_prepare.h"

namespace quadrille::api {
namespace {

using device::Buffer;
using device::HandOver;
using device::OwnedEvent;
using device::Stream;

struct Source {
  prepare::DeviceW4Source w4;
  std::vector<prepare::DeviceW4Expert> experts;
};

Status read_desc(const qd_weights_desc* desc, Source* source) {
  QD_TRY_STATUS(check_desc(desc));
  source->experts.resize(static_cast<size_t>(desc->num_experts));
  for (int64_t e = 0; e < desc->num_experts; ++e) {
    prepare::DeviceW4Expert& expert = source->experts[static_cast<size_t>(e)];
    for (int64_t part = 0; part < desc->num_parts; ++part) {
      const int64_t at = e * desc->num_parts + part;
      expert.codes[part] = desc->codes[at];
      expert.scales[part] = desc->scales[at];
      expert.bias[part] = desc->bias != nullptr ? desc->bias[at] : nullptr;
    }
  }
  if (desc->bias != nullptr) QD_TRY_STATUS(check_given(desc->bias[0], "bias of expert 0"));
  prepare::DeviceW4Source& w4 = source->w4;
  w4.source = static_cast<kernels::W4Source>(desc->source);
  w4.numerics = static_cast<kernels::Numerics>(desc->numerics);
  w4.part_n = desc->part_n;
  w4.num_parts = static_cast<int32_t>(desc->num_parts);
  w4.k = desc->k;
  w4.group_size = desc->group_size;
  w4.experts = source->experts;
  w4.on_host = desc->on_host != 0;
  return {};
}

// The events of one preparation from host memory; destroyed when everything is enqueued.
struct CopyEvents {
  std::vector<OwnedEvent> owned;
  Status fill(prepare::PrepareStreams* streams) {
    for (device::Event* event : {&streams->source_copied[0], &streams->source_copied[1], &streams->staging_free[0],
                                 &streams->staging_free[1], &streams->staging_ready}) {
      QD_TRY(OwnedEvent made, OwnedEvent::create());
      *event = made.get();
      owned.push_back(std::move(made));
    }
    return {};
  }
};

Status allocate(const prepare::DeviceW4Sizes& sizes, Stream stream, const device::Allocator& allocator,
                qd_weights* weights) {
  QD_TRY(weights->weights, Buffer::allocate(sizes.weight_bytes, stream, allocator));
  QD_TRY(weights->channel_scale, Buffer::allocate(sizes.channel_scale_bytes, stream, allocator));
  QD_TRY(weights->bias, Buffer::allocate(sizes.bias_bytes, stream, allocator));
  QD_TRY(weights->flags, Buffer::allocate(sizeof(uint32_t), stream, allocator));
  for (const Buffer* buffer : {&weights->weights, &weights->channel_scale, &weights->bias}) {
    device::fresh_buffer(buffer->get(), buffer->size_bytes(), stream);
  }
  return device::fill(weights->flags.get(), 0, sizeof(uint32_t), stream);
}

moe::DeviceLinear linear_of(const prepare::DeviceW4Source& w4, const prepare::DeviceW4Sizes& sizes,
                            const qd_weights& weights) {
  moe::DeviceLinear linear;
  linear.num_experts = static_cast<int64_t>(w4.experts.size());
  linear.n = w4.part_n * w4.num_parts;
  linear.k = w4.k;
  linear.group_size = w4.group_size;
  linear.numerics = w4.numerics;
  linear.weights = weights.weights.as<uint8_t>();
  linear.expert_stride = sizes.expert_stride;
  linear.channel_scale = weights.channel_scale.as<float>();
  linear.bias = weights.bias.as<float>();
  return linear;
}

// The caller's allocator (kept in `weights`) behind the device's border, or the pool.
Result<device::Allocator> read_allocator(const qd_allocator* given, qd_weights* weights) {
  if (given == nullptr) return device::default_allocator();
  if (given->allocate == nullptr || given->release == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "qd_allocator: expected both functions, found a null pointer");
  }
  weights->given = *given;
  return device::Allocator{&weights->given,
                           [](void* context, size_t bytes, Stream stream) {
                             const auto* all = static_cast<const qd_allocator*>(context);
                             return all->allocate(all->context, bytes, stream.handle);
                           },
                           [](void* context, void* memory, size_t bytes, Stream stream) {
                             const auto* all = static_cast<const qd_allocator*>(context);
                             all->release(all->context, memory, bytes, stream.handle);
                           }};
}

Result<std::unique_ptr<qd_weights>> prepare_weights(const Source& source, const qd_allocator* given, Stream stream,
                                                    Stream copy) {
  QD_TRY(const prepare::DeviceW4Sizes sizes, prepare::device_w4_sizes(source.w4));
  QD_TRY_STATUS(device::check_stream(stream));
  if (source.w4.on_host) {
    if (auto legal = device::check_stream(copy); !legal) return legal.error().in("copy_stream (for host sources)");
  }
  QD_TRY(const kernels::DeviceTable* table, kernels::device_table());
  QD_TRY(OwnedEvent done, OwnedEvent::create());
  auto weights = std::make_unique<qd_weights>(std::move(done));
  QD_TRY(const device::Allocator allocator, read_allocator(given, weights.get()));
  QD_TRY_STATUS(allocate(sizes, stream, allocator, weights.get()));
  QD_TRY(const Buffer staging, Buffer::allocate(sizes.staging_bytes, stream, allocator));

  prepare::PrepareStreams streams;
  streams.prepare = stream;
  streams.copy = copy;
  streams.done = weights->done.get();
  CopyEvents events;
  if (source.w4.on_host) QD_TRY_STATUS(events.fill(&streams));
  const prepare::DeviceW4Destination destination{weights->weights.as<uint8_t>(), weights->channel_scale.as<float>(),
                                                 weights->bias.as<float>()};
  // The staging memory goes back in the order of `stream`, which reads it last; where an error cuts the order short,
  // the copies that were enqueued come first.
  if (auto enqueued = prepare::prepare_on_device(*table, source.w4, destination, staging.get(), streams,
                                                 weights->flags.as<uint32_t>());
      !enqueued) {
    if (source.w4.on_host && device::record(streams.staging_ready, copy)) {
      (void)device::wait(stream, streams.staging_ready).ok();
    }
    return enqueued.error();
  }
  weights->linear = linear_of(source.w4, sizes, *weights);
  weights->num_parts = source.w4.num_parts;
  return weights;
}

Status read_flags(const qd_weights& weights, Stream stream, uint32_t* flags) {
  QD_TRY_STATUS(device::check_stream(stream));
  QD_TRY_STATUS(device::enter(HandOver::kWeightsPrepared, weights.done.get(), stream));
  if (flags != nullptr) {
    QD_TRY_STATUS(device::copy_to_host(flags, weights.flags.get(), sizeof *flags, stream));
  }
  QD_TRY_STATUS(device::synchronize(stream));
  weights.settled.store(true, std::memory_order_release);
  return {};
}

}  // namespace

Status check_desc(const qd_weights_desc* desc) {
  QD_TRY_STATUS(check_struct(desc, "qd_weights_desc"));
  if (desc->num_experts < 1 || desc->num_experts > INT32_MAX) {
    return make_error(ErrorCode::kInvalidArgument, "num_experts: expected at least 1, found {}", desc->num_experts);
  }
  if (desc->num_parts != 1 && desc->num_parts != 2) {
    return make_error(ErrorCode::kInvalidArgument, "num_parts: expected 1, or 2 (gate and up), found {}",
                      desc->num_parts);
  }
  if (desc->source < QD_SOURCE_UINT4B8 || desc->source > QD_SOURCE_INT8) {
    return make_error(ErrorCode::kUnsupported, "source {}: legal are 0 (uint4b8), 1 (int4), 2 (int8)", desc->source);
  }
  if (desc->numerics != QD_NUMERICS_EXACT && desc->numerics != QD_NUMERICS_VLLM) {
    return make_error(ErrorCode::kUnsupported, "numerics {}: legal are 0 (exact), 1 (vllm)", desc->numerics);
  }
  QD_TRY_STATUS(check_given(desc->codes, "codes"));
  return check_given(desc->scales, "scales");
}

Status order_behind(const qd_weights& weights, Stream stream) {
  if (weights.settled.load(std::memory_order_acquire)) return {};
  QD_TRY(const bool passed, device::reached(weights.done.get()));
  if (passed) {
    weights.settled.store(true, std::memory_order_release);
    return {};
  }
  QD_TRY(const bool captured, device::capturing(stream));
  if (!captured) return device::enter(HandOver::kWeightsPrepared, weights.done.get(), stream);
  return make_error(ErrorCode::kInvalidArgument,
                    "a capture began before the weights were prepared, and a graph cannot wait for them: call "
                    "qd_weights_synchronize before the capture");
}

}  // namespace quadrille::api

using quadrille::api::check_given;
using quadrille::api::guarded;

extern "C" {

qd_result qd_weights_bytes(const qd_weights_desc* desc, size_t* bytes, size_t* staging_bytes, qd_error* error) {
  return guarded(error, [&]() -> quadrille::Status {
    quadrille::api::Source source;
    QD_TRY_STATUS(quadrille::api::read_desc(desc, &source));
    QD_TRY(const auto sizes, quadrille::prepare::device_w4_sizes(source.w4));
    if (bytes != nullptr) *bytes = sizes.weight_bytes + sizes.channel_scale_bytes + sizes.bias_bytes + sizeof(uint32_t);
    if (staging_bytes != nullptr) *staging_bytes = sizes.staging_bytes;
    return {};
  });
}

qd_result qd_weights_prepare(const qd_weights_desc* desc, const qd_allocator* allocator, void* stream,
                             void* copy_stream, qd_weights** weights, qd_error* error) {
  return guarded(error, [&]() -> quadrille::Status {
    QD_TRY_STATUS(check_given(weights, "weights (where the handle goes)"));
    *weights = nullptr;
    quadrille::api::Source source;
    QD_TRY_STATUS(quadrille::api::read_desc(desc, &source));
    QD_TRY(auto made, quadrille::api::prepare_weights(source, allocator, {stream}, {copy_stream}));
    *weights = made.release();
    return {};
  });
}

qd_result qd_weights_wait(const qd_weights* weights, void* stream, qd_error* error) {
  return guarded(error, [&]() -> quadrille::Status {
    QD_TRY_STATUS(check_given(weights, "weights"));
    return quadrille::device::enter(quadrille::device::HandOver::kWeightsPrepared, weights->done.get(), {stream});
  });
}

qd_result qd_weights_prepared(const qd_weights* weights, int32_t* prepared, qd_error* error) {
  return guarded(error, [&]() -> quadrille::Status {
    QD_TRY_STATUS(check_given(weights, "weights"));
    QD_TRY_STATUS(check_given(prepared, "prepared"));
    *prepared = 0;
    QD_TRY(const bool is_done, quadrille::device::reached(weights->done.get()));
    *prepared = is_done ? 1 : 0;
    return {};
  });
}

qd_result qd_weights_synchronize(const qd_weights* weights, void* stream, uint32_t* flags, qd_error* error) {
  return guarded(error, [&]() -> quadrille::Status {
    QD_TRY_STATUS(check_given(weights, "weights"));
    return quadrille::api::read_flags(*weights, {stream}, flags);
  });
}

void qd_weights_destroy(qd_weights* weights, void* stream) {
  if (weights == nullptr) return;
  if (stream != nullptr) {
    for (auto* buffer : {&weights->weights, &weights->channel_scale, &weights->bias, &weights->flags}) {
      buffer->release_on({stream});
    }
  }
  delete weights;
}

}  // extern "C"
