// SPDX-License-Identifier: Apache-2.0
// Send, check, agree, then change: nothing is touched before every rank has said that it can.
#include "model/expert_moves.h"

#include <new>

#include "core/check.h"
#include "parallel/communicator.h"

namespace quadrille::model {
namespace {

using moe::Placement;
using Kind = ExpertMove::Kind;

moe::MatrixKind matrix_kind(const LinearStore& store, kernels::Numerics numerics) {
  return {store.is_w4, numerics, store.n, store.k, store.is_w4 ? store.group_size : 0, false};
}

moe::MatrixRef matrix_ref(const LinearStore& store, int64_t slot) {
  if (store.is_w4) return {&store.w4[static_cast<size_t>(slot)], nullptr, {}};
  return {nullptr, &store.bf16[static_cast<size_t>(slot)], {}};
}

void put_matrix(moe::ExpertMatrix matrix, int64_t slot, LinearStore* store) {
  const auto at = static_cast<size_t>(slot);
  if (store->is_w4) {
    if (at == store->w4.size()) store->w4.emplace_back();
    store->w4[at] = std::get<prepare::PreparedW4>(std::move(matrix.weights));
  } else {
    if (at == store->bf16.size()) store->bf16.emplace_back();
    store->bf16[at] = std::get<prepare::PreparedBf16>(std::move(matrix.weights));
  }
}

void drop_matrix(int64_t slot, LinearStore* store) {
  if (store->is_w4) {
    store->w4[static_cast<size_t>(slot)] = {};
  } else {
    store->bf16[static_cast<size_t>(slot)] = {};
  }
}

// The placement after the move; the same answer on every rank.
Result<Placement> placement_after(const ExpertMove& move, const LayerStore& layer) {
  if (!layer.placement) {
    return make_error(ErrorCode::kInvalidArgument,
                      "layer {}: expert {} cannot change its rank: the layer's experts are not spread over ranks",
                      move.layer, move.expert);
  }
  Placement next = *layer.placement;
  if (move.kind != Kind::kDrop) {
    QD_TRY(const int32_t slot, next.add(move.expert, move.to));
    QD_CHECK(slot >= 0, "a slot for the expert");
    const bool is_rank = move.from >= 0 && move.from < next.num_ranks();
    if (!is_rank || !layer.placement->holds(move.from, move.expert)) {
      return make_error(ErrorCode::kInvalidArgument, "layer {}: rank {} does not hold expert {}", move.layer, move.from,
                        move.expert);
    }
  }
  if (move.kind != Kind::kReplicate) QD_TRY_STATUS(next.remove(move.expert, move.from));
  return next;
}

// On `move.to` the expert, elsewhere nothing. The first part of the result is this rank's own trouble.
Result<std::optional<moe::Expert>> receive(const ExpertMove& move, const moe::Execution& execution,
                                           const LayerStore& layer, const moe::ExpertName& name, Status* own) {
  parallel::Communicator& ranks = *execution.expert_ranks;
  moe::Blob blob;
  if (ranks.rank() == move.from) {
    try {
      QD_TRY(blob, export_expert(layer, name));
    } catch (const std::bad_alloc&) {
      *own = make_error(ErrorCode::kCapacity, "layer {}: no memory to copy expert {}", move.layer, move.expert);
    }
  }
  QD_TRY_STATUS(moe::send_blob(ranks, move.from, move.to, &blob));
  if (ranks.rank() != move.to) return std::optional<moe::Expert>();
  try {
    auto expert = moe::unpack_expert(blob, name, expert_kind(layer, execution.numerics));
    if (expert) return std::optional(std::move(*expert));
    *own = expert.error();
  } catch (const std::bad_alloc&) {
    *own = make_error(ErrorCode::kCapacity, "layer {}: no memory for expert {}", move.layer, move.expert);
  }
  return std::optional<moe::Expert>();
}

// The same answer on all ranks of the grid: this rank's error, or that another has one.
Status agree(const ExpertMove& move, const moe::Execution& execution, const Status& own) {
  float failed = own ? 0.0f : 1.0f;
  QD_TRY_STATUS(execution.expert_ranks->all_reduce_max({&failed, 1}));
  if (execution.is_split()) QD_TRY_STATUS(execution.ranks->all_reduce_max({&failed, 1}));
  if (!own) return own;
  if (failed == 0) return {};
  return make_error(ErrorCode::kInvalidData, "layer {}: expert {} stays where it is: another rank could not take it",
                    move.layer, move.expert);
}

}  // namespace

moe::ExpertKind expert_kind(const LayerStore& layer, kernels::Numerics numerics) {
  return {matrix_kind(layer.experts.gate_up, numerics), matrix_kind(layer.experts.down, numerics)};
}

Result<moe::Blob> export_expert(const LayerStore& layer, const moe::ExpertName& name) {
  const bool is_expert = layer.placement && name.expert >= 0 && name.expert < layer.placement->num_experts();
  if (!is_expert || !layer.placement->holds(layer.expert_rank, name.expert)) {
    return make_error(ErrorCode::kInvalidArgument, "layer {}: rank {} does not hold expert {}", name.layer,
                      layer.expert_rank, name.expert);
  }
  const int32_t slot = layer.placement->slot(layer.expert_rank, name.expert);
  return moe::pack_expert(name, matrix_ref(layer.experts.gate_up, slot), matrix_ref(layer.experts.down, slot));
}

void put_expert(moe::Expert expert, int64_t slot, MlpStore* store) {
  put_matrix(std::move(expert.gate_up), slot, &store->gate_up);
  put_matrix(std::move(expert.down), slot, &store->down);
}

void drop_expert(int64_t slot, MlpStore* store) {
  drop_matrix(slot, &store->gate_up);
  drop_matrix(slot, &store->down);
}

std::vector<std::span<const std::byte>> expert_memory(const LayerStore& layer, int64_t expert) {
  std::vector<std::span<const std::byte>> memory;
  const int64_t slot = layer.placement ? layer.placement->slot(layer.expert_rank, expert) : expert;
  if (slot < 0) return memory;
  for (const LinearStore* store : {&layer.experts.gate_up, &layer.experts.down}) {
    for (const auto part : moe::parts_of(matrix_ref(*store, slot))) memory.push_back(part);
  }
  return memory;
}

Status move_expert(const ExpertMove& move, const moe::Execution& execution, LayerStore* layer) {
  QD_TRY(Placement next, placement_after(move, *layer));
  const int rank = layer->expert_rank;
  Status own;
  std::optional<moe::Expert> arrived;
  if (move.kind != Kind::kDrop) {
    const moe::ExpertName name{move.layer, move.expert, execution.is_split() ? execution.ranks->rank() : 0,
                               execution.is_split() ? execution.ranks->size() : 1};
    QD_TRY(arrived, receive(move, execution, *layer, name, &own));
  }
  QD_TRY_STATUS(agree(move, execution, own));
  if (arrived) put_expert(std::move(*arrived), next.slot(rank, move.expert), &layer->experts);
  if (move.kind != Kind::kReplicate && rank == move.from) {
    drop_expert(layer->placement->slot(rank, move.expert), &layer->experts);
  }
  layer->placement = std::move(next);
  return {};
}

}  // namespace quadrille::model
