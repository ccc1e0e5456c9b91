// SPDX-License-Identifier: Apache-2.0
// What a device backend is asked to enqueue around the MoE layer: embedding, residual and norm, heads into the KV
// cache, attention, dense bf16 products, sampling. Activations are bf16. Nothing is read back; every call may be
// captured into a graph; the bits of a token's row do not depend on the other tokens of the step. All pointers are
// device memory, rows on 16 bytes.
//
// A token of position -1 is padding (a step captured for more tokens than it has): it reads and writes no page.
#pragma once

#include <cstdint>

#include "kernels/api/device_problems.h"
#include "layout/kv_tile.h"

namespace quadrille::kernels {

// --- Embedding -------------------------------------------------------------------------------------------------------

// out[t] = table[ids[t] - first_row]; a row of -0 where the id is outside of [first_row, first_row + num_rows), which
// changes nothing in a sum over ranks.
struct DeviceEmbed {
  int64_t num_tokens = 0;
  int64_t width = 0;  // a multiple of 8
  int64_t first_row = 0;
  int64_t num_rows = 0;
  const int32_t* ids = nullptr;     // [num_tokens]
  const uint16_t* table = nullptr;  // [num_rows, width] bf16
  uint16_t* out = nullptr;          // [num_tokens, width] bf16, or null
  float* out_f32 = nullptr;         // [num_tokens, width] the same in fp32, for reduce_ranks; or null
};

// --- Residual and norm -----------------------------------------------------------------------------------------------

// For r in [0, num_rows), t = rows[r] (r where rows is null):
//   x[t] = bf16(x[t] + update[t]) where there is an update (fp32 updates are rounded to bf16 first), stored there or in
//   x_out (a kernel whose CTAs all read x cannot store in place); the update may be what `combine` would have made of
//   row t, which is then not stored itself; normed[r] = RMSNorm(x[t]) (problems.h), as bf16, as e4m3 codes with their
//   scale (the bytes of quantize_tokens on the bf16 row), or both. Rows that `rows` does not name are neither read nor
//   written; it names none twice.
struct DeviceAddNorm {
  int64_t num_rows = 0;
  int64_t width = 0;  // a multiple of 8
  float eps = 0;
  const int32_t* rows = nullptr;      // [num_rows] or null
  uint16_t* x = nullptr;              // [tokens, width] bf16 residual stream
  uint16_t* x_out = nullptr;          // out: where the sums go, apart from x, as many rows; null: into x
  const uint16_t* update = nullptr;   // [tokens, width] bf16, or null
  const float* update_f32 = nullptr;  // [tokens, width] fp32 (a sum over ranks), or null; one update at most
  DeviceCombine combine;              // rows not null: the update is row t of its result; its out is not used
  // The combine's slots and weights (and `rows`) were written before the kernel directly in front of this one in the
  // stream, so they may be read while that one still runs.
  bool routes_are_older = false;
  const uint16_t* weight = nullptr;  // [width] bf16; null: only the sum is formed
  uint16_t* normed = nullptr;        // out [num_rows, width] bf16, or null
  uint8_t* act = nullptr;            // out [num_rows, act_pitch] e4m3, columns behind width 0; or null
  int64_t act_pitch = 0;             // bytes, a multiple of 16 that holds the row
  float* act_scale = nullptr;        // out [num_rows], with act
};

// add_norm and route_and_plan of few tokens in one launch, same bits: every CTA makes the norm for itself, so no row of
// x may be written in place. The norm: no `rows`, no combine; a bf16 update with x_out, or none. The logits' x is not
// read. A bf16 row and codes are written where the norm names them.
struct DeviceNormAndRoute {
  DeviceAddNorm norm;
  RouteAndPlan route;
};
inline constexpr int64_t kMostNormedTokens = 4;
inline constexpr bool fits_norm_and_route(int64_t num_tokens, const DeviceRouteTokens& rule, int64_t k) {
  return num_tokens <= kMostNormedTokens && rule.num_groups == 1 && rule.num_experts <= 256 &&
         num_tokens * rule.top_k <= kMostFewRoutes && fits_route_and_plan(num_tokens, rule.num_experts, rule.top_k, k);
}

// --- Heads -----------------------------------------------------------------------------------------------------------

enum class HeadNorm : int32_t {
  kNone,
  kPerHead,          // RMSNorm over each head of q and of k
  kWholeProjection,  // over all of q and all of k
};

// Where keys and values of one layer lie: pages of 64 positions (layout/kv_tile.h).
struct DevicePages {
  uint16_t* data = nullptr;        // [pages, KvTile::page_size()] bf16, 128-byte aligned
  const int32_t* table = nullptr;  // [sequences, table_stride] page of positions [64 i, 64 i + 64)
  int64_t table_stride = 0;
  int64_t num_kv_heads = 0;  // of this rank
  int64_t head_dim = 0;      // even, padded_head_dim(head_dim) != 0; a multiple of 8
};

// q, k, v of every token, from the fused projection: norm of q and k, clip, rotary embedding of q and k; q to `q`, k
// and v into the token's page. Same bits as rms_norm, clip and rope of the CPU tables. position, sequence, the page
// table, weights, cos and sin are read before the kernel enqueued directly before has ended.
struct DeviceQkv {
  int64_t num_tokens = 0;
  int64_t num_heads = 0;  // query heads of this rank
  DevicePages pages;
  const uint16_t* qkv = nullptr;  // [num_tokens, qkv_pitch] bf16: q, k, v columns
  int64_t qkv_pitch = 0;          // elements, a multiple of 8
  HeadNorm norm = HeadNorm::kNone;
  float eps = 0;
  const uint16_t* q_norm = nullptr;  // bf16 weights: [head_dim], or [num_heads * head_dim] (whole projection)
  const uint16_t* k_norm = nullptr;  // [head_dim], or [num_kv_heads * head_dim]
  // Whole projection over ranks: rows of all ranks' columns, of which the mean is taken; null: the columns of qkv.
  const uint16_t* whole_q = nullptr;  // [num_tokens, whole_q_width] bf16
  const uint16_t* whole_k = nullptr;  // [num_tokens, whole_k_width] bf16
  int64_t whole_q_width = 0;
  int64_t whole_k_width = 0;
  float clip = 0;                     // q, k, v into [-clip, clip] (a bf16 value); 0: no clip
  int64_t rotary_dim = 0;             // even, up to head_dim; 0: none
  const float* cos = nullptr;         // [positions, rotary_dim / 2]
  const float* sin = nullptr;         // [positions, rotary_dim / 2]
  const int32_t* position = nullptr;  // [num_tokens]; -1: padding, nothing is written
  const int32_t* sequence = nullptr;  // [num_tokens] row of pages.table
  uint16_t* q = nullptr;              // out [num_tokens, num_heads * head_dim] bf16
};

// --- Attention -------------------------------------------------------------------------------------------------------

// Tokens [first_token, first_token + num_tokens) of the step belong to one sequence.
struct QueryTile {
  int32_t first_token;
  int32_t num_tokens;  // 1..attention_tile_tokens()
};

// Tokens of a tile: together with the query heads of a KV head they fill the 128 rows of a CTA (64 for heads above
// 128).
inline constexpr int64_t attention_tile_tokens(int64_t heads_per_kv, int64_t head_dim) {
  const int64_t rows = layout::padded_head_dim(head_dim) > 128 ? 64 : 128;
  const int64_t packed = heads_per_kv < 16 ? heads_per_kv : 16;
  return rows / packed;
}

// Which tokens of a step are attended alone (decode: a CTA or more for each) and which in tiles (prefill). Runs of
// equal `sequence` up to kLongestSingles tokens go alone. sequence [num_tokens] on the host; singles and tiles hold
// num_tokens entries each. Where every token is alone, a launch needs no lists: DeviceAttention::singles is null.
struct AttentionPlan {
  int64_t num_singles = 0;
  int64_t num_tiles = 0;
};
inline constexpr int64_t kLongestSingles = 2;
inline AttentionPlan plan_attention(const int32_t* sequence, int64_t num_tokens, int64_t tile_tokens, int32_t* singles,
                                    QueryTile* tiles) {
  AttentionPlan plan;
  for (int64_t first = 0, end = 0; first < num_tokens; first = end) {
    while (end < num_tokens && sequence[end] == sequence[first]) ++end;
    const bool alone = end - first <= kLongestSingles;
    for (int64_t t = first; t < end; t += alone ? 1 : tile_tokens) {
      if (alone) {
        singles[plan.num_singles++] = static_cast<int32_t>(t);
        continue;
      }
      const int64_t left = end - t;
      tiles[plan.num_tiles++] = {static_cast<int32_t>(t),
                                 static_cast<int32_t>(left < tile_tokens ? left : tile_tokens)};
    }
  }
  return plan;
}

// Causal paged attention in bf16 over key blocks of 64 at absolute positions (docs/kernels/decoder.md has the
// arithmetic to the step): for each block that a query sees, m, l and o of the block alone, folded in ascending order.
// So the bits of a row depend on its sequence alone: not on prefill, chunk, decode, batch, or how blocks are spread.
// Keys and values of positions up to the query's own must be finite for that; others are never used.
// What is read before the kernel enqueued directly before has ended: position, sequence, singles, the page table, and
// keys and values of positions up to that of a single less kLongestSingles. A step's tokens of one sequence stand side
// by side.
struct DeviceAttention {
  int64_t num_heads = 0;     // query heads of this rank
  int64_t heads_per_kv = 0;  // of the whole model
  int64_t head_phase = 0;    // query head i reads KV head (head_phase + i) / heads_per_kv (HeadShard::local_kv_head)
  int64_t window = 0;        // keys j with position - window < j <= position; 0: all j <= position
  float scale = 0;           // softmax scale, above 0
  DevicePages pages;
  const uint16_t* q = nullptr;        // [tokens, num_heads * head_dim] bf16
  const int32_t* position = nullptr;  // [tokens]; -1: padding, its row of out becomes +0
  const int32_t* sequence = nullptr;  // [tokens]
  uint16_t* out = nullptr;            // [tokens, num_heads * head_dim] bf16
  int64_t num_singles = 0;
  const int32_t* singles = nullptr;  // [num_singles] token; null: tokens 0..num_singles-1
  int64_t num_tiles = 0;
  const QueryTile* tiles = nullptr;  // [num_tiles]
  int64_t max_context = 0;           // positions are below this; bounds how the blocks of a single are spread
  // Partial results of singles whose blocks are spread over CTAs; what does not fit is not spread. The bits are equal.
  float* workspace = nullptr;
  int64_t workspace_floats = 0;
  // [attention_counters()], zero before the launch and behind it; two launches in flight share none. null: blocks are
  // spread less far, and there are no codes.
  int32_t* counters = nullptr;
  // Where every token is a single: the rows of out as e4m3 codes with their scales, too, the bytes of quantize_tokens.
  uint8_t* act = nullptr;      // out [tokens, act_pitch], columns behind the row 0; or null
  int64_t act_pitch = 0;       // bytes, a multiple of 16 that holds the row
  float* act_scale = nullptr;  // out [tokens], with act
  // projection.qkv not null: split_heads(projection) is part of the call, of the same tokens, all of them singles, and
  // q is projection.q, which then need not be written: with few tokens, one kernel does both. Same bits.
  DeviceQkv projection;
};

// Floats with which the blocks of `num_singles` tokens may be spread.
inline constexpr int64_t attention_workspace_floats(int64_t num_singles, int64_t num_heads, int64_t head_dim,
                                                    int64_t max_context) {
  const int64_t blocks = (max_context + layout::kPagePositions - 1) / layout::kPagePositions;
  return num_singles * num_heads * blocks * (layout::padded_head_dim(head_dim) + 4);
}
// Counters of `num_singles` tokens: one a KV head and 16 query heads of it, one of the row.
inline constexpr int64_t attention_counters(int64_t num_singles, int64_t num_kv_heads, int64_t heads_per_kv) {
  return num_singles * (num_kv_heads * ((heads_per_kv + 15) / 16) + 1);
}

// --- Dense bf16 products ---------------------------------------------------------------------------------------------

// out[s, j] = sum over k of x[row, k] * weights[e][j, k], (+ bias): fp32 in pieces of 256 k (tensor cores, k ascending,
// each from +0), the pieces added in ascending order; the same for every number of rows. Row-major weights, as
// checkpoints have them.
struct DeviceBf16Gemm {
  int64_t n = 0;  // out features, a multiple of 8
  int64_t k = 0;  // in features, a multiple of 8
  int64_t num_experts = 1;
  TileList list;                      // rows of each expert; null tiles: list.num_rows rows of the one expert
  int64_t tile_tokens = 0;            // with tiles: rows that one of them may have, a result of choose_bf16_tile()
  const uint16_t* weights = nullptr;  // [num_experts, n, k] bf16; kActivated, gated: gate rows, then up rows
  int64_t expert_stride = 0;          // elements between experts, a multiple of 8
  const float* bias = nullptr;        // [num_experts, n] fp32 in the order of the rows, or null
  const uint16_t* x = nullptr;        // [rows, x_pitch] bf16
  int64_t x_pitch = 0;                // elements between rows, a multiple of 8
  // With tiles: row of x that a slot reads is source_row[slot] / source_divisor (route_of_slot and top_k of a plan, so
  // that tokens need not be copied to their routes); null: the slot itself.
  const int32_t* source_row = nullptr;
  int64_t source_divisor = 1;
  GemmOutput output = GemmOutput::kRowsBf16;
  Numerics numerics = Numerics::kExact;  // rounding points of kActivated
  numerics::ActivationRule activation;
  void* out = nullptr;
  int64_t out_pitch = 0;  // elements between rows of out: a multiple of 8 for bf16, of 4 for fp32
};

// --- Sampling --------------------------------------------------------------------------------------------------------

// Greedy choice of each row: the largest logit, ties to the lowest id (engine/sampler.h), and its log-probability.
// A row that holds NaN or +infinity, or nothing above -infinity, has no token: -1, and kStatusBadLogits.
inline constexpr uint32_t kStatusBadLogits = 32;
struct DeviceGreedy {
  int64_t num_rows = 0;
  int64_t vocab_size = 0;
  int64_t pitch = 0;              // floats between rows
  const float* logits = nullptr;  // [num_rows, pitch]
  int32_t* token = nullptr;       // out [num_rows]
  int32_t* token_at = nullptr;    // or null: token r goes to token_at[slot[r]], too (the ids of the next step)
  const int32_t* slot = nullptr;  // [num_rows], with token_at; a slot below 0 writes nothing
  float* logprob = nullptr;       // out [num_rows], or null
  uint32_t* status = nullptr;     // [1]
};

// How one row is drawn: the fields of engine::SamplingParams but for the repetition penalty, which the device does not
// know. `index`: tokens that the answer already has. temperature 0: greedy.
struct SampleRule {
  float temperature;
  int32_t top_k;  // 0: off
  float top_p;    // 1: off
  float min_p;    // 0: off
  uint64_t seed;
  uint64_t index;
};

inline constexpr int64_t kMostDrawnIds = int64_t{1} << 19;  // sums of weights are exact up to here
// Draws a token of each row: that of engine/sampler.h for the same logits and rule. Rows without a token as above.
struct DeviceSample {
  int64_t num_rows = 0;
  int64_t vocab_size = 0;             // at most kMostDrawnIds
  int64_t pitch = 0;                  // floats between rows
  const float* logits = nullptr;      // [num_rows, pitch]
  const SampleRule* rules = nullptr;  // [num_rows]
  int32_t* token = nullptr;           // out [num_rows]
  int32_t* token_at = nullptr;        // as in DeviceGreedy
  const int32_t* slot = nullptr;      // [num_rows], with token_at
  uint32_t* status = nullptr;         // [1]
};

}  // namespace quadrille::kernels
