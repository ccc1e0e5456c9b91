// SPDX-License-Identifier: Apache-2.0
// The order of a load: dense tensors gather into slots, stacks of 4-bit matrices go as many experts a slot as fit. A
// slot is filled by the pool, sent, and filled again when its copy is done.
#include "model/device_load.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>

#include "core/check.h"
#include "layout/w4_hopper64.h"
#include "model/device_cuts.h"
#include "model/load_weights.h"
#include "model/pinned_ring.h"
#include "model/weight_reader.h"

namespace quadrille::model {
namespace {

using device::HandOver;

constexpr size_t kLeastSlotBytes = size_t{32} << 20;
constexpr size_t kPieceBytes = size_t{1} << 20;  // of a dense tensor, for one thread

size_t slot_bytes(const WeightPlaces& places) {
  return std::max(kLeastSlotBytes, places.largest_slot);
}

constexpr size_t aligned(size_t bytes) {
  return W4Gatherer::aligned(bytes);
}

// Rows of a tensor that one thread reads, as bf16 or fp32.
struct DensePiece {
  CutModule module;
  layout::Range rows;  // of the module
  bool is_bias = false;
  size_t offset = 0;  // in the weights' memory
  size_t bytes = 0;
  bool is_last = false;  // of its module
};

// A stack of 4-bit matrices: sources of each expert in the order of the rows.
struct W4Job {
  const StackPlace* place = nullptr;
  int32_t num_parts = 1;  // 2: gate and up
  std::vector<std::vector<CutModule>> experts;
};

class DeviceLoader {
 public:
  explicit DeviceLoader(const DeviceLoad& load)
      : load_(load),
        cuts_(load.shard),
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
  ~DeviceLoader() {
    (void)device::synchronize(load_.streams.copy);
    (void)device::synchronize(load_.streams.prepare);
  }

  Result<DeviceLoadReport> run() {
    const auto start = std::chrono::steady_clock::now();
    QD_TRY_STATUS(open());
    QD_TRY_STATUS(load_all());
    QD_TRY_STATUS(close());
    DeviceLoadReport report;
    report.notes = reader_.notes();
    report.bytes_copied = bytes_copied_;
    report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

 private:
  Status open() {
    const device::Stream prepare = load_.streams.prepare;
    slot_bytes_ = slot_bytes(load_.places);
    QD_TRY_STATUS(ring_.open(slot_bytes_));
    QD_TRY(staging_, device::Buffer::allocate(load_.places.largest_staging, prepare));
    QD_TRY(status_, device::Buffer::allocate(sizeof(uint32_t), prepare));
    QD_TRY_STATUS(device::fill(status_.get(), 0, sizeof(uint32_t), prepare));
    // The memory was taken on the preparation stream.
    return device::hand_over(HandOver::kStagingReady, load_.streams.staging_ready, prepare, load_.streams.copy);
  }

  // Behind it the preparation stream has everything: what it prepared and what was copied to its place.
  Status close() {
    QD_TRY_STATUS(flush_dense());
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

  Status load_all() {
    const Inventory& from = load_.inventory;
    const WeightPlaces& to = load_.places;
    const CutModule embedding = cuts_.vocabulary(from.embedding);
    QD_TRY_STATUS(add_dense(embedding, to.embedding.offset));
    QD_TRY_STATUS(clear_behind(to.embedding, embedding));
    for (size_t l = 0; l < from.layers.size(); ++l) QD_TRY_STATUS(load_layer(l, from.layers[l], to.layers[l]));
    QD_TRY_STATUS(add_whole(from.final_norm, to.final_norm));
    if (!from.lm_head) return {};
    const CutModule head = cuts_.vocabulary(*from.lm_head);
    QD_TRY_STATUS(load_stack(to.lm_head, 1, {{head}}));
    return to.lm_head.shape.is_w4 ? Status() : clear_behind(to.lm_head.weights, head);
  }

  Status load_layer(size_t l, const LayerSources& from, const LayerPlace& to) {
    QD_TRY_STATUS(add_whole(from.input_norm, to.input_norm));
    QD_TRY_STATUS(add_whole(from.post_attention_norm, to.post_attention_norm));
    // Weights of a norm over the whole projection are cut as its rows are; those of one head are every rank's.
    const bool cut = load_.config.qk_norm == QkNorm::kWholeProjection;
    if (from.q_norm) {
      QD_TRY_STATUS(add_dense(cut ? cuts_.q(l, *from.q_norm) : cuts_.whole(*from.q_norm), to.q_norm.offset));
    }
    if (from.k_norm) {
      QD_TRY_STATUS(add_dense(cut ? cuts_.kv(l, *from.k_norm) : cuts_.whole(*from.k_norm), to.k_norm.offset));
    }
    const std::vector<CutModule> qkv = {cuts_.q(l, from.q), cuts_.kv(l, from.k), cuts_.kv(l, from.v)};
    if (to.qkv.size() == 1) {
      QD_TRY_STATUS(load_stack(to.qkv[0], 1, {qkv}));
    } else {
      for (size_t i = 0; i < qkv.size(); ++i) QD_TRY_STATUS(load_stack(to.qkv[i], 1, {{qkv[i]}}));
    }
    QD_TRY_STATUS(load_stack(to.o, 1, {{cuts_.o(l, from.o)}}));
    if (from.router) QD_TRY_STATUS(add_whole(*from.router, to.router));
    if (from.shared_gate) QD_TRY_STATUS(add_whole(*from.shared_gate, to.shared_gate));
    using layout::LayerShard;
    if (to.experts) QD_TRY_STATUS(load_mlps(l, &LayerShard::experts, from.experts, *to.experts));
    if (to.shared) QD_TRY_STATUS(load_mlps(l, &LayerShard::shared, {&*from.shared, 1}, *to.shared));
    if (to.dense) QD_TRY_STATUS(load_mlps(l, &LayerShard::dense, {&*from.dense, 1}, *to.dense));
    return {};
  }

  Status load_mlps(size_t layer, RankCuts::MlpOf mlp, std::span<const MlpSources> from, const MlpPlace& to) {
    std::vector<std::vector<CutModule>> gate_up, down;
    for (const MlpSources& source : from) {
      gate_up.push_back({cuts_.columns(layer, mlp, source.gate), cuts_.columns(layer, mlp, source.up)});
      down.push_back({cuts_.down(layer, mlp, source.down)});
    }
    QD_TRY_STATUS(load_stack(to.gate_up, 2, std::move(gate_up)));
    return load_stack(to.down, 1, std::move(down));
  }

  // `num_parts` 2: gate and up rows, which the 4-bit layout interleaves.
  Status load_stack(const StackPlace& place, int32_t num_parts, std::vector<std::vector<CutModule>> experts) {
    if (place.shape.is_w4) return load_w4({&place, num_parts, std::move(experts)});
    size_t offset = place.weights.offset, bias = place.bias.offset;
    for (const auto& modules : experts) {
      for (const CutModule& module : modules) {
        if (module.bias_count() > 0) {
          QD_TRY_STATUS(add_piece({module, module.rows(), true, bias, 4 * module.bias_count()}));
          bias += 4 * module.bias_count();
        }
        QD_TRY_STATUS(add_dense(module, offset));
        offset += 2 * static_cast<size_t>(module.rows().size() * module.k());
      }
    }
    return {};
  }

  // --- Dense tensors ---

  Status add_whole(const ModuleSource& source, const Place& place) {
    return add_dense(cuts_.whole(source), place.offset);
  }

  Status add_dense(const CutModule& module, size_t offset) {
    const auto row_bytes = 2 * static_cast<size_t>(module.k());
    const auto rows_a_piece = static_cast<int64_t>(std::max<size_t>(kPieceBytes / row_bytes, 1));
    const layout::Range rows = module.rows();
    for (int64_t row = rows.begin; row < rows.end; row += rows_a_piece) {
      DensePiece piece;
      piece.module = module;
      piece.rows = {row, std::min(row + rows_a_piece, rows.end)};
      piece.offset = offset + static_cast<size_t>(row - rows.begin) * row_bytes;
      piece.bytes = static_cast<size_t>(piece.rows.size()) * row_bytes;
      piece.is_last = piece.rows.end == rows.end;
      QD_TRY_STATUS(add_piece(piece));
    }
    return {};
  }

  Status add_piece(const DensePiece& piece) {
    if (pending_bytes_ + aligned(piece.bytes) > slot_bytes_) QD_TRY_STATUS(flush_dense());
    QD_CHECK(piece.bytes <= slot_bytes_, "a piece fits into a slot");
    pending_.push_back(piece);
    pending_bytes_ += aligned(piece.bytes);
    return {};
  }

  Status flush_dense() {
    if (pending_.empty()) return {};
    QD_TRY(std::byte* const slot, next_slot());
    std::vector<std::byte*> places;
    size_t at = 0;
    for (const DensePiece& piece : pending_) {
      places.push_back(slot + at);
      at += aligned(piece.bytes);
    }
    QD_TRY_STATUS(fill(pending_.size(), [&](size_t i) { return read_piece(pending_[i], places[i]); }));
    const device::Stream copy = load_.streams.copy;
    device::before_step("load.dense", copy);
    for (size_t i = 0; i < pending_.size(); ++i) {
      QD_TRY_STATUS(send(load_.base + pending_[i].offset, places[i], pending_[i].bytes));
    }
    QD_TRY_STATUS(ring_.sent(copy));
    for (const DensePiece& piece : pending_) {
      if (piece.is_last) done(*piece.module.source);
    }
    pending_.clear();
    pending_bytes_ = 0;
    return {};
  }

  Status read_piece(const DensePiece& piece, std::byte* to) {
    const CutModule& module = piece.module;
    if (piece.is_bias) {
      QD_TRY(const std::vector<float> values, reader_.read_bias(*module.source, piece.rows));
      std::memcpy(to, values.data(), piece.bytes);
      return {};
    }
    QD_TRY(const std::vector<uint16_t> values, reader_.read_bf16(*module.source, piece.rows));
    if (!module.cut.columns) {
      std::memcpy(to, values.data(), piece.bytes);
      return {};
    }
    const auto width = static_cast<size_t>(module.source->k()), held = static_cast<size_t>(module.k());
    const auto first = static_cast<size_t>(module.cut.columns->k_begin);
    for (size_t row = 0; row < static_cast<size_t>(piece.rows.size()); ++row) {
      std::memcpy(to + 2 * row * held, values.data() + row * width + first, 2 * held);
    }
    return {};
  }

  // Zeros behind the rows of a matrix whose place is longer.
  Status clear_behind(const Place& place, const CutModule& module) {
    const auto bytes = 2 * static_cast<size_t>(module.rows().size() * module.k());
    return device::fill(load_.base + place.offset + bytes, 0, place.bytes - bytes, load_.streams.copy);
  }

  // --- 4-bit stacks ---

  Status load_w4(const W4Job& job) {
    const size_t expert_bytes = w4_.bytes(job.experts[0]);
    const size_t most = std::max<size_t>(slot_bytes_ / expert_bytes, 1);
    for (size_t first = 0; first < job.experts.size(); first += most) {
      QD_TRY_STATUS(load_experts(job, first, std::min(most, job.experts.size() - first)));
    }
    return {};
  }

  Status load_experts(const W4Job& job, size_t first, size_t count) {
    QD_TRY(std::byte* const slot, next_slot());
    const size_t expert_bytes = w4_.bytes(job.experts[first]);
    std::vector<prepare::DeviceW4Expert> experts(count);
    QD_TRY_STATUS(fill(count, [&](size_t e) {
      return w4_.read(job.experts[first + e], job.num_parts, slot + e * expert_bytes, &experts[e]);
    }));
    QD_TRY_STATUS(send_experts(job, static_cast<int64_t>(first), experts));
    QD_TRY_STATUS(ring_.sent(load_.streams.copy));
    bytes_copied_ += count * expert_bytes;
    for (size_t e = 0; e < count; ++e) {
      for (const CutModule& module : job.experts[first + e]) done(*module.source);
    }
    return {};
  }

  Status send_experts(const W4Job& job, int64_t first, std::span<const prepare::DeviceW4Expert> experts) {
    const StackPlace& place = *job.place;
    const StackShape& shape = place.shape;
    prepare::DeviceW4Source source;
    source.source = shape.source;
    source.numerics = load_.options.numerics;
    source.num_parts = job.num_parts;
    source.part_n = shape.n / job.num_parts;
    source.k = shape.k;
    source.group_size = shape.group_size;
    source.experts = experts;
    source.on_host = true;
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

  // --- Steps of every slot ---

  Result<std::byte*> next_slot() {
    if (load_.options.cancel != nullptr && load_.options.cancel->load(std::memory_order_relaxed)) {
      return make_error(ErrorCode::kCancelled, "loading stopped after {} of {} modules", progress_.modules_done,
                        progress_.modules_total);
    }
    return ring_.next();
  }

  // Of several errors the first part's is told.
  Status fill(size_t count, const std::function<Status(size_t)>& read) const {
    std::vector<Status> status(count);
    load_.options.pool->run(static_cast<int64_t>(count),
                            [&](int64_t i) { status[static_cast<size_t>(i)] = read(static_cast<size_t>(i)); });
    for (const Status& one : status) QD_TRY_STATUS(one);
    return {};
  }

  Status send(void* to, const void* from, size_t bytes) {
    bytes_copied_ += bytes;
    return device::copy_to_device(to, from, bytes, load_.streams.copy);
  }

  void done(const ModuleSource& source) {
    ++progress_.modules_done;
    progress_.bytes_done += source.disk_bytes();
    progress_.module = source.path;
    if (load_.options.progress) load_.options.progress(progress_);
  }

  const DeviceLoad& load_;
  RankCuts cuts_;
  WeightReader reader_;
  W4Gatherer w4_;
  PinnedRing ring_;
  size_t slot_bytes_ = 0;
  device::Buffer staging_, status_;
  std::vector<DensePiece> pending_;
  size_t pending_bytes_ = 0;
  uint64_t bytes_copied_ = 0;
  LoadProgress progress_;
};

}  // namespace

Result<DeviceLoadReport> load_to_device(const DeviceLoad& load) {
  return DeviceLoader(load).run();
}

uint64_t load_ring_bytes(const WeightPlaces& places) {
  return PinnedRing::kSlots * slot_bytes(places);
}
uint64_t load_device_bytes(const WeightPlaces& places) {
  return places.largest_staging + 256;
}

}  // namespace quadrille::model
