// SPDX-License-Identifier: Apache-2.0
// The shards are random matrices of the shapes that a cut gives; nobody needs the whole ones.
#include "device_step/rank_engine.h"

#include <cstring>

#include "device/device_stack.h"
#include "device/random_data.h"
#include "layout/shard_plan.h"

namespace quadrille::testing {
namespace {

constexpr int64_t kGroup = 128;
constexpr int64_t kRowsBytes = kTokens * kHidden * 2;

device::Buffer poisoned(size_t bytes, device::Stream stream) {
  device::Buffer buffer = must(device::Buffer::allocate(bytes, stream));
  must(device::fill(buffer.get(), kPoison, bytes, stream));
  return buffer;
}

}  // namespace

moe::DeviceMlp make_shard(const kernels::DeviceTable& table, int64_t experts, int64_t width, int64_t first_expert,
                          int rank, int ranks, Memory* memory, device::Stream stream) {
  const layout::KFormat format{width, true, kGroup};
  const auto held = must(layout::cut_in_units(width, 64, ranks, "test width"))[static_cast<size_t>(rank)];
  const layout::KShard cut = layout::k_shard(format, held);
  StackSpec spec;
  spec.experts = experts;
  spec.first_expert = first_expert;
  spec.part_n = held.size();
  spec.num_parts = 2;
  spec.matrix = kGate;
  spec.k = kHidden;
  spec.group = kGroup;
  spec.seed = 300 + static_cast<uint64_t>(rank);
  moe::DeviceMlp mlp;
  mlp.hidden = kHidden;
  mlp.width = held.size();
  mlp.gate_up = make_device_stack(table, spec, memory, stream);
  spec.part_n = kHidden;
  spec.num_parts = 1;
  spec.matrix = kDown;
  spec.k = cut.k();
  mlp.down = make_device_stack(table, spec, memory, stream);
  mlp.down_offset = cut.k_offset();
  return mlp;
}

RankEngine::RankEngine(parallel::DeviceCommunicator* communicator, device::Stream main)
    : table_(*must(kernels::device_table())),
      main_(main),
      side_(must(device::OwnedStream::create())),
      begins_(must(device::OwnedEvent::create())),
      ends_(must(device::OwnedEvent::create())) {
  const int rank = communicator->rank(), ranks = communicator->size();
  layer_.rule.num_experts = kExperts;
  layer_.rule.top_k = kTopK;
  layer_.experts = make_shard(table_, kExperts, kWidth, 0, rank, ranks, &memory_, main_);
  layer_.shared = make_shard(table_, 1, kSharedWidth, kSharedExpert, rank, ranks, &memory_, main_);
  layer_.ranks.tensor = communicator;
  for (int v = 0; v < kVersions; ++v) inputs_[static_cast<size_t>(v)] = make_step_input(v, &memory_, main_);
  workspace_ = poisoned(moe::workspace_bytes(layer_, kTokens), main_);
  out_ = poisoned(kInFlight * kRowsBytes, main_);
  status_ = poisoned(sizeof(uint32_t), main_);
  must(device::fill(status_.get(), 0, sizeof(uint32_t), main_));
  results_ = must(device::PinnedBuffer::allocate(kInFlight * kRowsBytes));
  must(device::synchronize(main_));
}

RankEngine::~RankEngine() {
  (void)device::synchronize(side_.get()).ok();
  (void)device::synchronize(main_).ok();
}

void RankEngine::name_streams(RandomDelays* delays) const {
  delays->name_stream(main_, Role::kMain);
  delays->name_stream(side_.get(), Role::kSide);
}

Status RankEngine::enqueue(int number) {
  const StepInput& in = inputs_[static_cast<size_t>(number % kVersions)];
  const int64_t place = number % kInFlight * kRowsBytes;
  moe::DeviceBatch batch;
  batch.num_tokens = kTokens;
  batch.x = in.x;
  batch.topk_ids = in.ids;
  batch.topk_weights = in.weights;
  batch.out = reinterpret_cast<uint16_t*>(out_.as<uint8_t>() + place);
  device::fresh_buffer(batch.out, kRowsBytes, main_);
  const moe::DeviceStreams streams{main_, side_.get(), begins_.get(), ends_.get()};
  QD_TRY_STATUS(moe::run_device_layer(table_, layer_, batch, workspace_.get(), workspace_.size_bytes(), streams,
                                      status_.as<uint32_t>()));
  return device::copy_to_host(static_cast<uint8_t*>(results_.get()) + place, batch.out, kRowsBytes, main_);
}

Status RankEngine::drain() {
  QD_TRY_STATUS(device::synchronize(side_.get()));
  return device::synchronize(main_);
}

std::vector<uint16_t> RankEngine::result(int number) const {
  std::vector<uint16_t> rows(kTokens * kHidden);
  std::memcpy(rows.data(), static_cast<const uint8_t*>(results_.get()) + number % kInFlight * kRowsBytes, kRowsBytes);
  return rows;
}

uint32_t RankEngine::status() {
  return on_host<uint32_t>(status_.get(), 1, main_)[0];
}

}  // namespace quadrille::testing
