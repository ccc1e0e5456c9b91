// SPDX-License-Identifier: Apache-2.0
// Sizes grow with the number of tokens, part by part, so a workspace for a maximum serves every smaller call.
#include "moe/device_workspace.h"

#include <algorithm>

namespace quadrille::moe {
namespace {

class Cursor {
 public:
  Part take(int64_t count, int64_t size) {
    const Part part{end_, static_cast<size_t>(count * size)};
    end_ += (part.bytes + 255) / 256 * 256;
    return part;
  }
  // A part over everything since `begin`.
  Part over(size_t begin, int64_t count, int64_t size) {
    const size_t end = end_;
    end_ = begin;
    const Part part = take(count, size);
    end_ = std::max(end, end_);
    return part;
  }
  size_t end() const { return end_; }

 private:
  size_t end_ = 0;
};

// few_rows: as many as a GEMM2 may have that quantises h itself.
MlpParts plan_mlp(const DeviceMlp& mlp, int64_t rows, int64_t few_rows, bool is_split, Cursor* cursor) {
  MlpParts parts;
  const size_t begin = cursor->end();
  parts.act = cursor->take(rows, act_pitch(mlp.hidden));
  parts.act_scale = cursor->take(rows, sizeof(float));
  parts.hidden = cursor->take(rows, 2 * mlp.width);
  parts.rows = cursor->over(begin, rows, (is_split ? 4 : 2) * mlp.hidden);
  parts.second = cursor->take(rows, act_pitch(mlp.down.k));
  parts.second_scale = cursor->take(rows, sizeof(float));
  parts.few_hidden = cursor->take(few_rows, 2 * mlp.width);
  return parts;
}

TileParts plan_lists(int64_t max_tiles, Cursor* cursor) {
  TileParts lists;
  for (int i = 0; i < 2; ++i) {
    lists.tiles[i] = cursor->take(max_tiles, sizeof(kernels::TokenTile));
    lists.count[i] = cursor->take(1, sizeof(int32_t));
  }
  return lists;
}

}  // namespace

LayerParts plan_layer_parts(const DeviceMoeLayer& layer, int64_t num_tokens) {
  const int64_t routes = num_tokens * layer.rule.top_k;
  const int64_t experts = layer.experts.gate_up.num_experts;
  Cursor cursor;
  LayerParts parts;
  parts.status = cursor.take(1, sizeof(uint32_t));
  parts.ids = cursor.take(routes, sizeof(int32_t));
  parts.weights = cursor.take(routes, sizeof(float));
  parts.offsets = cursor.take(experts + 1, sizeof(int32_t));
  parts.route_of_slot = cursor.take(routes, sizeof(int32_t));
  parts.slot_of_route = cursor.take(routes, sizeof(int32_t));
  parts.scratch = cursor.take(kernels::plan_scratch_ints(routes, experts), sizeof(int32_t));
  parts.lists = plan_lists(kernels::max_route_tiles(routes, experts, kMinTileTokens), &cursor);
  const bool is_split = layer.ranks.is_split();
  parts.experts =
      plan_mlp(layer.experts, routes, std::min(routes, kernels::kMostInputRows * layer.rule.top_k), is_split, &cursor);
  if (layer.shared) {
    parts.shared = plan_mlp(*layer.shared, num_tokens, 0, is_split, &cursor);
    parts.shared_gate = cursor.take(num_tokens, sizeof(float));
  }
  if (is_split) {
    parts.absmax = cursor.take(routes + (layer.shared ? num_tokens : 0), sizeof(float));
    parts.partial = cursor.take(num_tokens * layer.experts.hidden, sizeof(float));
  }
  parts.total = cursor.end();
  return parts;
}

MaskedParts plan_masked_parts(const DeviceMlp& mlp, int64_t max_m) {
  const int64_t experts = mlp.gate_up.num_experts;
  const int64_t rows = experts * max_m;
  Cursor cursor;
  MaskedParts parts;
  parts.status = cursor.take(1, sizeof(uint32_t));
  parts.lists = plan_lists(experts * ((max_m + kMinTileTokens - 1) / kMinTileTokens), &cursor);
  parts.experts.hidden = cursor.take(rows, 2 * mlp.width);
  parts.experts.second = cursor.take(rows, act_pitch(mlp.down.k));
  parts.experts.second_scale = cursor.take(rows, sizeof(float));
  parts.total = cursor.end();
  return parts;
}

LinearParts plan_linear_parts(const DeviceLinear& linear, int64_t num_rows, const DeviceRanks& ranks) {
  Cursor cursor;
  LinearParts parts;
  parts.act = cursor.take(num_rows, act_pitch(linear.k));
  parts.act_scale = cursor.take(num_rows, sizeof(float));
  if (ranks.is_split()) {
    parts.absmax = cursor.take(num_rows, sizeof(float));
    parts.partial = cursor.take(num_rows * linear.n, sizeof(float));
  }
  parts.total = cursor.end();
  return parts;
}

}  // namespace quadrille::moe
