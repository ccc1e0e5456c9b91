// SPDX-License-Identifier: Apache-2.0
// How a slot of load_slots.h is read and sent. slot_pipeline.h has the threads do it.
#include "model/device_load.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/check.h"
#include "device/order.h"
#include "layout/w4_hopper64.h"
#include "model/device_cuts.h"
#include "model/load_slots.h"
#include "model/slot_pipeline.h"
#include "model/weight_reader.h"

namespace quadrille::model {
namespace {

using device::HandOver;

size_t slot_bytes(const WeightPlaces& places) {
  return std::max(PinnedRing::kLeastSlotBytes, places.largest_slot);
}

class DeviceLoader final : public SlotWork {
 public:
  explicit DeviceLoader(const DeviceLoad& load)
      : load_(load),
        reader_(load.options.numerics, load.options.round_scales,
                load.options.split_scale == moe::SplitScale::kAgreed ? prepare::ChannelScale::kWholeRow
                                                                     : prepare::ChannelScale::kOwnGroups),
        w4_(&reader_, load.options) {
    for (const ModuleSource* source : load.inventory.modules()) {
      ++progress_.modules_total;
      progress_.bytes_total += source->disk_bytes();
    }
  }
  DeviceLoader(const DeviceLoader&) = delete;
  DeviceLoader& operator=(const DeviceLoader&) = delete;
  // Copies out of the ring may be on their way when an error ends the load.
  ~DeviceLoader() override {
    (void)device::synchronize(load_.streams.copy);
    (void)device::synchronize(load_.streams.prepare);
  }

  Result<DeviceLoadReport> run() {
    const auto start = std::chrono::steady_clock::now();
    QD_TRY_STATUS(open());
    plan_ = plan_load(load_.inventory, load_.config, load_.places, load_.shard, w4_, load_.ring.slot_bytes());
    for (const ZeroFill& zeros : plan_.zeros) {
      QD_TRY_STATUS(device::fill(load_.base + zeros.offset, 0, zeros.bytes, load_.streams.copy));
    }
    SlotPipeline pipeline;
    pipeline.pool = load_.options.pool;
    pipeline.ring = &load_.ring;
    pipeline.ordinal = load_.ordinal;
    pipeline.copy = load_.streams.copy;
    pipeline.cancel = load_.options.cancel;
    QD_TRY(const SlotTimes times, run_slots(pipeline, this));
    QD_TRY_STATUS(close());
    DeviceLoadReport report;
    report.notes = reader_.notes();
    report.bytes_copied = bytes_copied_;
    report.times = times;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

  size_t num_slots() const override { return plan_.slots.size(); }
  size_t num_parts(size_t slot) const override { return plan_.slots[slot].num_parts(); }
  Status fill(size_t slot, size_t part, std::byte* memory) override {
    const LoadSlot& filled = plan_.slots[slot];
    if (filled.stack == nullptr) return read_piece(filled.pieces[part], memory + filled.pieces[part].slot_offset);
    const W4Stack& stack = *filled.stack;
    return w4_.read(stack.experts[filled.first + part], stack.num_parts, memory + part * stack.expert_bytes);
  }
  Status send(size_t slot, std::byte* memory) override {
    const LoadSlot& filled = plan_.slots[slot];
    return filled.stack != nullptr ? send_experts(filled, memory) : send_pieces(filled, memory);
  }

 private:
  Status open() {
    const device::Stream prepare = load_.streams.prepare;
    QD_TRY_STATUS(load_.ring.open(slot_bytes(load_.places)));
    QD_TRY(staging_, device::Buffer::allocate(load_.places.largest_staging, prepare, load_.allocator));
    QD_TRY(status_, device::Buffer::allocate(sizeof(uint32_t), prepare, load_.allocator));
    QD_TRY_STATUS(device::fill(status_.get(), 0, sizeof(uint32_t), prepare));
    // The memory was taken on the preparation stream.
    return device::hand_over(HandOver::kStagingReady, load_.streams.staging_ready, prepare, load_.streams.copy);
  }

  // Behind it the preparation stream has everything: what it prepared and what was copied to its place.
  Status close() {
    QD_TRY_STATUS(device::hand_over(HandOver::kSourceCopied, load_.streams.source_copied[0], load_.streams.copy,
                                    load_.streams.prepare));
    QD_TRY_STATUS(device::leave(HandOver::kWeightsPrepared, load_.streams.done, load_.streams.prepare));
    uint32_t flags = 0;
    QD_TRY_STATUS(device::copy_to_host(&flags, status_.get(), sizeof flags, load_.streams.prepare));
    QD_TRY_STATUS(device::synchronize(load_.streams.prepare));
    if (flags == 0) return {};
    return make_error(ErrorCode::kInvalidData,
                      "{}: the preparation on the GPU met a scale or code that is none (flags {}), which the file did "
                      "not show: the memory between is damaged",
                      load_.inventory.checkpoint.folder(), flags);
  }

  Status read_piece(const DensePiece& piece, std::byte* to) {
    const CutModule& module = piece.module;
    if (piece.is_bias) {
      QD_TRY(const std::vector<float> values, reader_.read_bias(*module.source, piece.rows));
      std::memcpy(to, values.data(), piece.bytes);
      return {};
    }
    if (!module.cut.columns) {
      return reader_.read_bf16_into(*module.source, piece.rows, {reinterpret_cast<uint16_t*>(to), piece.bytes / 2});
    }
    QD_TRY(const std::vector<uint16_t> values, reader_.read_bf16(*module.source, piece.rows));
    const auto width = static_cast<size_t>(module.source->k()), held = static_cast<size_t>(module.k());
    const auto first = static_cast<size_t>(module.cut.columns->k_begin);
    for (size_t row = 0; row < static_cast<size_t>(piece.rows.size()); ++row) {
      std::memcpy(to + 2 * row * held, values.data() + row * width + first, 2 * held);
    }
    return {};
  }

  Status send_pieces(const LoadSlot& slot, const std::byte* memory) {
    device::before_step("load.dense", load_.streams.copy);
    for (const DensePiece& piece : slot.pieces) {
      QD_TRY_STATUS(device::copy_to_device(load_.base + piece.offset, memory + piece.slot_offset, piece.bytes,
                                           load_.streams.copy));
      bytes_copied_ += piece.bytes;
      if (piece.is_last) done(*piece.module.source);
    }
    return {};
  }

  Status send_experts(const LoadSlot& slot, std::byte* memory) {
    const W4Stack& stack = *slot.stack;
    std::vector<prepare::DeviceW4Expert> experts;
    for (size_t e = 0; e < slot.count; ++e) {
      const std::vector<CutModule>& modules = stack.experts[slot.first + e];
      experts.push_back(w4_.places(modules, stack.num_parts, memory + e * stack.expert_bytes));
      for (const CutModule& module : modules) done(*module.source);
    }
    bytes_copied_ += slot.count * stack.expert_bytes;
    return prepare(stack, static_cast<int64_t>(slot.first), experts);
  }

  Status prepare(const W4Stack& stack, int64_t first, std::span<const prepare::DeviceW4Expert> experts) {
    const StackPlace& place = *stack.place;
    const StackShape& shape = place.shape;
    prepare::DeviceW4Source source;
    source.source = shape.source;
    source.numerics = load_.options.numerics;
    source.num_parts = stack.num_parts;
    source.part_n = shape.n / stack.num_parts;
    source.k = shape.k;
    source.group_size = shape.group_size;
    source.experts = experts;
    source.on_host = true;
    // As many as the staging of the largest matrix holds: fewer calls, at no memory.
    const size_t held = staging_.size_bytes() / 2 / stack.expert_bytes;
    source.experts_at_once = std::clamp<int64_t>(static_cast<int64_t>(held), 1, kernels::kMaxPrepareExperts);
    QD_TRY(const prepare::DeviceW4Sizes sizes, device_w4_sizes(source));
    QD_CHECK(sizes.expert_stride == place.expert_stride && sizes.staging_bytes <= staging_.size_bytes(),
             "the plan and the preparation agree about sizes");
    const layout::W4Hopper64 map{shape.n, shape.k, shape.group_size, source.numerics == kernels::Numerics::kVllm};
    prepare::DeviceW4Destination to;
    to.weights = load_.base + place.weights.offset + first * place.expert_stride;
    if (map.vllm) to.channel_scale = floats_at(place.channel_scale) + first * map.padded_n();
    if (shape.has_bias) to.bias = floats_at(place.bias) + first * map.padded_n();
    return prepare_on_device(load_.table, source, to, staging_.get(), load_.streams, status_.as<uint32_t>());
  }

  float* floats_at(const Place& place) const { return reinterpret_cast<float*>(load_.base + place.offset); }

  void done(const ModuleSource& source) {
    ++progress_.modules_done;
    progress_.bytes_done += source.disk_bytes();
    progress_.module = source.path;
    if (load_.options.progress) load_.options.progress(progress_);
  }

  const DeviceLoad& load_;
  WeightReader reader_;
  W4Gatherer w4_;
  LoadPlan plan_;
  device::Buffer staging_, status_;
  // Of send(), which runs once at a time.
  uint64_t bytes_copied_ = 0;
  LoadProgress progress_;
};

}  // namespace

Result<DeviceLoadReport> load_to_device(const DeviceLoad& load) {
  return DeviceLoader(load).run();
}

uint64_t load_device_bytes(const WeightPlaces& places) {
  return places.largest_staging + 256;
}

}  // namespace quadrille::model
