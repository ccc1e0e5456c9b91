// SPDX-License-Identifier: Apache-2.0
// A walk over the model in its order; slots are filled greedily.
#include "model/load_slots.h"

#include <algorithm>

#include "core/check.h"

namespace quadrille::model {
namespace {

constexpr size_t kPieceBytes = size_t{1} << 20;  // of a dense tensor, for one thread

constexpr size_t aligned(size_t bytes) {
  return W4Gatherer::aligned(bytes);
}

class SlotPlanner {
 public:
  SlotPlanner(const Inventory& inventory, const ModelConfig& config, const WeightPlaces& places,
              const layout::ModelShard* shard, const W4Gatherer& gatherer, size_t slot_bytes)
      : inventory_(inventory),
        config_(config),
        places_(places),
        cuts_(shard),
        gatherer_(gatherer),
        slot_bytes_(slot_bytes) {}

  LoadPlan plan() {
    const Inventory& from = inventory_;
    const WeightPlaces& to = places_;
    const CutModule embedding = cuts_.vocabulary(from.embedding);
    add_dense(embedding, to.embedding.offset);
    clear_behind(to.embedding, embedding);
    for (size_t l = 0; l < from.layers.size(); ++l) add_layer(l, from.layers[l], to.layers[l]);
    add_whole(from.final_norm, to.final_norm);
    if (from.lm_head) {
      const CutModule head = cuts_.vocabulary(*from.lm_head);
      add_stack(to.lm_head, 1, {{head}});
      if (!to.lm_head.shape.is_w4) clear_behind(to.lm_head.weights, head);
    }
    close_dense();
    return std::move(plan_);
  }

 private:
  void add_layer(size_t l, const LayerSources& from, const LayerPlace& to) {
    add_whole(from.input_norm, to.input_norm);
    add_whole(from.post_attention_norm, to.post_attention_norm);
    // Weights of a norm over the whole projection are cut as its rows are; those of one head are every rank's.
    const bool cut = config_.qk_norm == QkNorm::kWholeProjection;
    if (from.q_norm) {
      add_dense(cut ? cuts_.q(l, *from.q_norm) : cuts_.whole(*from.q_norm), to.q_norm.offset);
    }
    if (from.k_norm) {
      add_dense(cut ? cuts_.kv(l, *from.k_norm) : cuts_.whole(*from.k_norm), to.k_norm.offset);
    }
    const std::vector<CutModule> qkv = {cuts_.q(l, from.q), cuts_.kv(l, from.k), cuts_.kv(l, from.v)};
    if (to.qkv.size() == 1) {
      add_stack(to.qkv[0], 1, {qkv});
    } else {
      for (size_t i = 0; i < qkv.size(); ++i) add_stack(to.qkv[i], 1, {{qkv[i]}});
    }
    add_stack(to.o, 1, {{cuts_.o(l, from.o)}});
    if (from.router) add_whole(*from.router, to.router);
    if (from.shared_gate) add_whole(*from.shared_gate, to.shared_gate);
    using layout::LayerShard;
    if (to.experts) add_mlps(l, &LayerShard::experts, from.experts, *to.experts);
    if (to.shared) add_mlps(l, &LayerShard::shared, {&*from.shared, 1}, *to.shared);
    if (to.dense) add_mlps(l, &LayerShard::dense, {&*from.dense, 1}, *to.dense);
  }

  void add_mlps(size_t layer, RankCuts::MlpOf mlp, std::span<const MlpSources> from, const MlpPlace& to) {
    std::vector<std::vector<CutModule>> gate_up, down;
    for (const MlpSources& source : from) {
      gate_up.push_back({cuts_.columns(layer, mlp, source.gate), cuts_.columns(layer, mlp, source.up)});
      down.push_back({cuts_.down(layer, mlp, source.down)});
    }
    add_stack(to.gate_up, 2, std::move(gate_up));
    add_stack(to.down, 1, std::move(down));
  }

  // `num_parts` 2: gate and up rows, which the 4-bit layout interleaves.
  void add_stack(const StackPlace& place, int32_t num_parts, std::vector<std::vector<CutModule>> experts) {
    if (place.shape.is_w4) return add_w4(place, num_parts, std::move(experts));
    size_t offset = place.weights.offset, bias = place.bias.offset;
    for (const auto& modules : experts) {
      for (const CutModule& module : modules) {
        if (module.bias_count() > 0) {
          add_piece({module, module.rows(), true, bias, 4 * module.bias_count(), 0, false});
          bias += 4 * module.bias_count();
        }
        add_dense(module, offset);
        offset += 2 * static_cast<size_t>(module.rows().size() * module.k());
      }
    }
  }

  // --- Dense tensors ---

  void add_whole(const ModuleSource& source, const Place& place) { add_dense(cuts_.whole(source), place.offset); }

  void add_dense(const CutModule& module, size_t offset) {
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
      add_piece(piece);
    }
  }

  void add_piece(DensePiece piece) {
    QD_CHECK(piece.bytes <= slot_bytes_, "a piece fits into a slot");
    if (dense_bytes_ + aligned(piece.bytes) > slot_bytes_) close_dense();
    piece.slot_offset = dense_bytes_;
    dense_bytes_ += aligned(piece.bytes);
    dense_.pieces.push_back(piece);
  }

  void close_dense() {
    if (!dense_.pieces.empty()) plan_.slots.push_back(std::move(dense_));
    dense_ = {};
    dense_bytes_ = 0;
  }

  void clear_behind(const Place& place, const CutModule& module) {
    const auto bytes = 2 * static_cast<size_t>(module.rows().size() * module.k());
    if (place.bytes > bytes) plan_.zeros.push_back({place.offset + bytes, place.bytes - bytes});
  }

  // --- 4-bit stacks ---

  void add_w4(const StackPlace& place, int32_t num_parts, std::vector<std::vector<CutModule>> experts) {
    const size_t expert_bytes = gatherer_.bytes(experts[0], num_parts);
    QD_CHECK(expert_bytes <= slot_bytes_, "an expert fits into a slot");
    plan_.stacks.push_back({&place, num_parts, std::move(experts), expert_bytes});
    const W4Stack& stack = plan_.stacks.back();
    const size_t most = slot_bytes_ / expert_bytes;
    for (size_t first = 0; first < stack.experts.size(); first += most) {
      LoadSlot slot;
      slot.stack = &stack;
      slot.first = first;
      slot.count = std::min(most, stack.experts.size() - first);
      plan_.slots.push_back(std::move(slot));
    }
  }

  const Inventory& inventory_;
  const ModelConfig& config_;
  const WeightPlaces& places_;
  const RankCuts cuts_;
  const W4Gatherer& gatherer_;
  const size_t slot_bytes_;
  LoadPlan plan_;
  LoadSlot dense_;  // open for more pieces
  size_t dense_bytes_ = 0;
};

}  // namespace

LoadPlan plan_load(const Inventory& inventory, const ModelConfig& config, const WeightPlaces& places,
                   const layout::ModelShard* shard, const W4Gatherer& gatherer, size_t slot_bytes) {
  return SlotPlanner(inventory, config, places, shard, gatherer, slot_bytes).plan();
}

}  // namespace quadrille::model
