// SPDX-License-Identifier: Apache-2.0
// The order between this class's own buffers is kept with plain events; what the library orders goes through hand_over.
#include "device_step/step_engine.h"

#include <algorithm>
#include <cstring>

#include "device/device_memory.h"

namespace quadrille::testing {
namespace {

constexpr int64_t kRowsBytes = kTokens * kHidden * 2;  // of one layer's output

device::OwnedStream new_stream() {
  return must(device::OwnedStream::create());
}

device::Buffer poisoned(size_t bytes, device::Stream stream) {
  device::Buffer buffer = must(device::Buffer::allocate(bytes, stream));
  must(device::fill(buffer.get(), kPoison, bytes, stream));
  return buffer;
}

moe::DeviceLinear linear_of(const prepare::DeviceW4Source& source, const prepare::DeviceW4Sizes& sizes,
                            const device::Buffer& weights) {
  moe::DeviceLinear linear;
  linear.num_experts = static_cast<int64_t>(source.experts.size());
  linear.n = source.part_n * source.num_parts;
  linear.k = source.k;
  linear.group_size = source.group_size;
  linear.weights = weights.as<uint8_t>();
  linear.expert_stride = sizes.expert_stride;
  return linear;
}

}  // namespace

device::OwnedEvent StepEngine::Owned::must_event() {
  return must(device::OwnedEvent::create());
}

StepEngine::StepEngine(const StepData& data)
    : data_(data), main_(new_stream()), side_(new_stream()), prepare_(new_stream()), copy_(new_stream()) {
  const device::Stream stream = main_.get();
  for (SmallStack& stack : stacks_) make_small_stack(&stack);
  const size_t staging = std::max(must(prepare::device_w4_sizes(data.gate_up_source(0))).staging_bytes,
                                  must(prepare::device_w4_sizes(data.down_source(0))).staging_bytes);
  staging_ = poisoned(staging, stream);
  workspace_ = poisoned(moe::workspace_bytes(data.large(), kTokens), stream);
  small_workspace_ = poisoned(moe::workspace_bytes(stacks_[0].layer, kTokens), stream);
  out_ = poisoned(2 * kInFlight * kRowsBytes, stream);
  status_ = poisoned(sizeof(uint32_t), stream);
  must(device::fill(status_.get(), 0, sizeof(uint32_t), stream));
  results_ = must(device::PinnedBuffer::allocate(2 * kInFlight * kRowsBytes));
  for (const Owned& free : stack_free_) must(device::record(free.event.get(), stream));
  must(device::synchronize(stream));
}

StepEngine::~StepEngine() {
  for (const device::OwnedStream* stream : {&copy_, &prepare_, &side_, &main_}) {
    (void)device::synchronize(stream->get()).ok();
  }
}

void StepEngine::make_small_stack(SmallStack* stack) {
  const auto gate_up = data_.gate_up_source(0), down = data_.down_source(0);
  const auto gate_up_sizes = must(prepare::device_w4_sizes(gate_up)), down_sizes = must(prepare::device_w4_sizes(down));
  stack->gate_up = poisoned(gate_up_sizes.weight_bytes, main_.get());
  stack->down = poisoned(down_sizes.weight_bytes, main_.get());
  stack->layer.rule.num_experts = kSmallExperts;
  stack->layer.rule.top_k = kSmallTopK;
  stack->layer.experts.hidden = kHidden;
  stack->layer.experts.width = kWidth;
  stack->layer.experts.gate_up = linear_of(gate_up, gate_up_sizes, stack->gate_up);
  stack->layer.experts.down = linear_of(down, down_sizes, stack->down);
}

void StepEngine::name_streams(RandomDelays* delays) const {
  delays->name_stream(main_.get(), Role::kMain);
  delays->name_stream(side_.get(), Role::kSide);
  delays->name_stream(prepare_.get(), Role::kPrepare);
  delays->name_stream(copy_.get(), Role::kCopy);
}

void StepEngine::prepare_small(const SmallStack& stack, int version) {
  prepare::PrepareStreams streams;
  streams.prepare = prepare_.get();
  streams.copy = copy_.get();
  for (size_t i = 0; i < 2; ++i) {
    streams.source_copied[i] = source_copied_[i].event.get();
    streams.staging_free[i] = staging_free_[i].event.get();
  }
  streams.staging_ready = staging_ready_.event.get();
  streams.done = done_.event.get();
  for (const bool down : {false, true}) {
    const device::Buffer& weights = down ? stack.down : stack.gate_up;
    device::fresh_buffer(weights.get(), weights.size_bytes(), prepare_.get());
    prepare::DeviceW4Destination destination;
    destination.weights = weights.as<uint8_t>();
    const auto source = down ? data_.down_source(version) : data_.gate_up_source(version);
    must(prepare::prepare_on_device(data_.table(), source, destination, staging_.get(), streams,
                                    status_.as<uint32_t>()));
  }
}

void StepEngine::run(const moe::DeviceMoeLayer& layer, const moe::DeviceBatch& batch, const device::Buffer& workspace,
                     int number, int half) {
  const int64_t place = (2 * (number % kInFlight) + half) * kRowsBytes;
  moe::DeviceBatch to = batch;
  to.num_tokens = kTokens;
  to.out = reinterpret_cast<uint16_t*>(out_.as<uint8_t>() + place);
  device::fresh_buffer(to.out, kRowsBytes, main_.get());
  moe::DeviceStreams streams;
  streams.main = main_.get();
  streams.side = side_.get();
  streams.shared_begins = shared_begins_.event.get();
  streams.shared_ends = shared_ends_.event.get();
  must(moe::run_device_layer(data_.table(), layer, to, workspace.get(), workspace.size_bytes(), streams,
                             status_.as<uint32_t>()));
  must(device::copy_to_host(static_cast<uint8_t*>(results_.get()) + place, to.out, kRowsBytes, main_.get()));
}

void StepEngine::enqueue(int number) {
  const int version = number % kVersions;
  const auto pair = static_cast<size_t>(number % 2);
  const SmallStack& small = stacks_[pair];
  must(device::wait(prepare_.get(), stack_free_[pair].event.get()));
  prepare_small(small, version);

  const StepInput& in = data_.input(version);
  moe::DeviceBatch batch;
  batch.x = in.x;
  batch.topk_ids = in.ids;
  batch.topk_weights = in.weights;
  run(data_.large(), batch, workspace_, number, 0);

  must(device::enter(device::HandOver::kWeightsPrepared, done_.event.get(), main_.get()));
  batch.topk_ids = in.small_ids;
  batch.topk_weights = in.small_weights;
  run(small.layer, batch, small_workspace_, number, 1);
  must(device::record(stack_free_[pair].event.get(), main_.get()));
}

void StepEngine::wait() {
  must(device::synchronize(main_.get()));
}

std::vector<uint16_t> StepEngine::result(int number) const {
  std::vector<uint16_t> rows(2 * kTokens * kHidden);
  std::memcpy(rows.data(), static_cast<const uint8_t*>(results_.get()) + 2 * (number % kInFlight) * kRowsBytes,
              2 * kRowsBytes);
  return rows;
}

void StepEngine::drain() {
  for (const device::OwnedStream* stream : {&copy_, &prepare_, &side_, &main_}) {
    must(device::synchronize(stream->get()));
  }
}

uint32_t StepEngine::status() {
  return on_host<uint32_t>(status_.get(), 1, main_.get())[0];
}

}  // namespace quadrille::testing
