// SPDX-License-Identifier: Apache-2.0
// A cursor over the parts; parts begin at multiples of 256 bytes.
#include "model/device_step_memory.h"

#include <algorithm>

#include "kernels/api/route_words.h"
#include "model/device_columns.h"
#include "model/device_step.h"

namespace quadrille::model {
namespace {

using moe::Part;

// Blocks of a decode step's attention are spread as far as this goes.
constexpr int64_t kMostAttentionFloats = int64_t{16} << 20;

class Cursor {
 public:
  Part take(int64_t count, int64_t bytes) {
    const Part part{end_, static_cast<size_t>(count * bytes)};
    end_ += (part.bytes + 255) / 256 * 256;
    return part;
  }
  Part take_bytes(size_t bytes) { return take(static_cast<int64_t>(bytes), 1); }
  size_t end() const { return end_; }

 private:
  size_t end_ = 0;
};

// The largest block of a step within the sizes.
int64_t most_block_ints(const StepSizes& sizes) {
  StepShape shape;
  shape.num_tokens = shape.num_logit_rows = shape.num_singles = shape.num_tiles = sizes.max_tokens;
  shape.num_sequences = std::max(sizes.max_sequences, bucket_of(1));
  shape.max_context = (sizes.max_positions + kPagePositions - 1) / kPagePositions * kPagePositions;
  shape.every_token_alone = false;
  shape.draws = true;
  return block_of(shape).total;
}

size_t most_moe_bytes(const DeviceWeightsView& weights, const ModelConfig& config, int64_t max_tokens, bool is_split) {
  size_t most = 0;
  for (const DeviceLayerView& layer : weights.layers) {
    if (layer.moe) {
      most = std::max(most, moe::workspace_bytes(*layer.moe, max_tokens));
    } else if (layer.is_moe()) {
      most = std::max(most, plan_bf16_moe(config, max_tokens, is_split).total);
    }
  }
  return most;
}

// Of run_row_parallel_linear() for the largest of o_proj and the feed-forwards' second products.
size_t most_row_parallel_bytes(const DeviceWeightsView& weights, const moe::DeviceRanks& ranks, int64_t max_tokens) {
  size_t most = 0;
  const auto note = [&](const DeviceMatrix& matrix) {
    if (matrix.shape.is_w4) most = std::max(most, moe::row_parallel_workspace_bytes(matrix.w4, ranks, max_tokens));
  };
  for (const DeviceLayerView& layer : weights.layers) {
    note(layer.o);
    if (layer.dense) note(layer.dense->down);
  }
  return most;
}

int64_t gathered_columns(const std::vector<layout::Range>& ranges) {
  int64_t sum = 0;
  for (const layout::Range range : ranges) sum += column_pitch(range);
  return sum;
}

// The parts that one rank alone has no use for.
void plan_rank_parts(const DeviceWeightsView& weights, const ModelConfig& config, const StepSizes& sizes,
                     const DeviceShard& shard, const moe::DeviceRanks& ranks, Cursor* cursor, StepMemory* memory) {
  const int64_t tokens = sizes.max_tokens;
  memory->partial = cursor->take(tokens, 4 * config.hidden_size);
  memory->row_parallel = cursor->take_bytes(most_row_parallel_bytes(weights, ranks, tokens));
  int64_t gathered = 4 * sizes.max_logit_rows * gathered_columns(shard.vocabulary(0));
  if (config.qk_norm == QkNorm::kWholeProjection) {
    gathered = std::max(gathered,
                        2 * tokens * std::max(gathered_columns(shard.q_rows(0)), gathered_columns(shard.kv_rows(0))));
    memory->own_columns = cursor->take(tokens, 2 * std::max(config.q_width(), config.kv_width()));
    memory->whole_q = cursor->take(tokens, 2 * shard.q_rows(0).back().end);
    memory->whole_k = cursor->take(tokens, 2 * shard.kv_rows(0).back().end);
  }
  memory->gathered = cursor->take(gathered, 1);
  memory->own_logits = cursor->take(sizes.max_logit_rows, 4 * weights.lm_head.shape.n);
}

}  // namespace

int64_t logits_pitch(const DeviceWeightsView& weights, const ModelConfig& config, const DeviceShard& shard) {
  return shard.is_split() ? (config.vocab_size + 7) / 8 * 8 : weights.lm_head.shape.n;
}

StepMemory plan_step_memory(const DeviceWeightsView& weights, const ModelConfig& config, const StepSizes& sizes,
                            const DeviceShard& shard, const moe::DeviceRanks& ranks) {
  const int64_t tokens = sizes.max_tokens, rows = sizes.max_logit_rows;
  const int64_t hidden = config.hidden_size, q = config.q_width();
  Cursor cursor;
  StepMemory memory;
  memory.block = cursor.take(most_block_ints(sizes), 4);
  for (Part* part : {&memory.x, &memory.normed, &memory.update}) *part = cursor.take(tokens, 2 * hidden);
  memory.other_x = cursor.take(std::min(tokens, kernels::kMostNormedTokens), 2 * hidden);
  memory.act = cursor.take(tokens, moe::act_pitch(hidden));
  memory.act_scale = cursor.take(tokens, 4);
  memory.qkv = cursor.take(tokens, 2 * (q + 2 * config.kv_width()));
  memory.q = cursor.take(tokens, 2 * q);
  memory.mixed = cursor.take(tokens, 2 * q);
  memory.mixed_act = cursor.take(tokens, moe::act_pitch(q));
  memory.mixed_scale = cursor.take(tokens, 4);
  const int64_t wished = kernels::attention_workspace_floats(std::min(tokens, sizes.max_sequences), config.num_heads,
                                                             config.head_dim, sizes.max_positions);
  memory.attention = cursor.take(std::min(wished, kMostAttentionFloats), 4);
  memory.attention_counters =
      cursor.take(kernels::attention_counters(tokens, config.num_kv_heads, config.num_heads / config.num_kv_heads), 4);
  memory.router_logits = cursor.take(tokens, 4 * config.router.num_experts);
  memory.router_arrivals = cursor.take(kernels::kNormAndRouteWords, 4);
  memory.moe = cursor.take_bytes(most_moe_bytes(weights, config, tokens, shard.is_split()));
  const int64_t width = std::max(config.dense_width, config.shared_width);
  memory.mlp_hidden = cursor.take(tokens, 2 * width);
  memory.mlp_act = cursor.take(tokens, moe::act_pitch(width));
  memory.mlp_scale = cursor.take(tokens, 4);
  memory.mlp_rows = cursor.take(tokens, 2 * hidden);
  memory.shared_gate = cursor.take(tokens, 4);
  memory.final_rows = cursor.take(rows, 2 * hidden);
  memory.final_act = cursor.take(rows, moe::act_pitch(hidden));
  memory.final_scale = cursor.take(rows, 4);
  memory.logits = cursor.take(rows, 4 * logits_pitch(weights, config, shard));
  if (shard.is_split()) plan_rank_parts(weights, config, sizes, shard, ranks, &cursor, &memory);
  memory.tokens = cursor.take(tokens, 4);
  memory.status = cursor.take(1, 4);
  memory.total = cursor.end();
  return memory;
}

Bf16MoeParts plan_bf16_moe(const ModelConfig& config, int64_t num_tokens, bool is_split) {
  const int64_t routes = num_tokens * config.router.top_k, experts = config.router.num_experts;
  Cursor cursor;
  Bf16MoeParts parts;
  parts.ids = cursor.take(routes, 4);
  parts.weights = cursor.take(routes, 4);
  parts.offsets = cursor.take(experts + 1, 4);
  parts.route_of_slot = cursor.take(routes, 4);
  parts.slot_of_route = cursor.take(routes, 4);
  parts.scratch = cursor.take(kernels::plan_scratch_ints(routes, experts), 4);
  parts.tiles = cursor.take(kernels::max_route_tiles(routes, experts, moe::kMinTileTokens),
                            static_cast<int64_t>(sizeof(kernels::TokenTile)));
  parts.num_tiles = cursor.take(1, 4);
  parts.hidden = cursor.take(routes, 2 * config.expert_width);
  parts.rows = cursor.take(routes, (is_split ? 4 : 2) * config.hidden_size);
  if (is_split) parts.shared = cursor.take(num_tokens, 4 * config.hidden_size);
  parts.total = cursor.end();
  return parts;
}

}  // namespace quadrille::model
