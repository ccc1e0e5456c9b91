// SPDX-License-Identifier: Apache-2.0
// What a device backend is asked to enqueue: plain structs over device pointers, each with its shape. docs/numerics.md
// defines every result to the bit; the results are those of the CPU table `hopper`. Nothing here is read by the host:
// counts that the routing decides stay on the device. Every call enqueues on the stream that it is given and returns.
#pragma once

#include <cstdint>

#include "kernels/api/problems.h"
#include "layout/w4_hopper64.h"

namespace quadrille::kernels {

// --- Plan: which rows belong to which expert -------------------------------------------------------------------------

// A piece of one expert's rows, at most as many as the token tile of the GEMM configuration.
struct TokenTile {
  int32_t expert;
  int32_t first_row;   // row of the permuted activations
  int32_t num_rows;    // 1..tile tokens
  int32_t first_tile;  // the expert's tiles are [first_tile, first_tile + num_tiles) of the list
  int32_t num_tiles;
  int32_t reserved[3];
};

// The device's own list of work, written by plan_routes or plan_masked, read by everything after it.
struct TileList {
  const TokenTile* tiles = nullptr;    // [max_tiles], valid up to num_tiles; null: one expert, rows 0..num_rows-1
  const int32_t* num_tiles = nullptr;  // [1]
  int64_t max_tiles = 0;               // bound that the host plans grids with
  int64_t num_rows = 0;                // null tiles only: rows of the one expert, known to the host
};

// Bits of a status word in device memory, set with atomicOr and never cleared by kernels; the host reads it when it
// likes. A bad id counts as -1, so a layer stays in bounds whatever the ids are.
enum StatusBit : uint32_t {
  kStatusBadExpertId = 1,     // an id outside of -1..num_experts-1 (of the map, where there is one)
  kStatusBadScale = 2,        // preparation: a scale that is NaN or infinite
  kStatusBadCode = 4,         // preparation: an int8 code outside of -8..7
  kStatusBadMaskedCount = 8,  // masked layout: masked_m outside of 0..max_m
};

// Stable counting sort of routes by expert (the CPU's moe::Plan) and the tile list. Routes with id -1 get no slot.
struct PlanRoutes {
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t num_experts = 0;              // experts here
  int64_t tile_tokens = 0;              // rows a tile may have
  const int32_t* ids = nullptr;         // [num_tokens, top_k]
  const int32_t* expert_map = nullptr;  // [map_size] global expert -> expert here or -1; null: ids are experts here
  int64_t map_size = 0;
  int32_t* offsets = nullptr;        // out [num_experts + 1] first slot of each expert
  int32_t* route_of_slot = nullptr;  // out [num_tokens * top_k], valid up to offsets[num_experts]
  int32_t* slot_of_route = nullptr;  // out [num_tokens, top_k]; -1: not here
  TokenTile* tiles = nullptr;        // out [max_tiles], 16-byte aligned
  int32_t* num_tiles = nullptr;      // out [1]
  int64_t max_tiles = 0;             // at least max_route_tiles(...)
  int32_t* scratch = nullptr;        // [plan_scratch_ints(...)]
  uint32_t* status = nullptr;        // [1]
};
// Most tiles that any routing can give.
inline constexpr int64_t max_route_tiles(int64_t num_routes, int64_t num_experts, int64_t tile_tokens) {
  const int64_t hit = num_routes < num_experts ? num_routes : num_experts;
  return hit + num_routes / tile_tokens;
}
inline constexpr int64_t kPlanChunk = 256;  // routes that one block of the sort handles
inline constexpr int64_t plan_scratch_ints(int64_t num_routes, int64_t num_experts) {
  return ((num_routes + kPlanChunk - 1) / kPlanChunk) * num_experts + 1;  // counts of each chunk, finished blocks
}

// The tile list of the masked layout: expert e has rows [e * max_m, e * max_m + masked_m[e]).
struct PlanMasked {
  int64_t num_experts = 0;
  int64_t max_m = 0;
  int64_t tile_tokens = 0;
  const int32_t* masked_m = nullptr;  // [num_experts]
  TokenTile* tiles = nullptr;         // out [num_experts * ceil(max_m / tile_tokens)], 16-byte aligned
  int32_t* num_tiles = nullptr;       // out [1]
  uint32_t* status = nullptr;         // [1]
};

// --- Router ----------------------------------------------------------------------------------------------------------

// logits[t, e] = 32-lane dot product of x[t] and weight[e]; also the gate of a shared expert (one expert, sigmoid).
struct DeviceRouterLogits {
  int64_t num_tokens = 0;
  int64_t num_experts = 0;
  int64_t k = 0;
  bool sigmoid = false;              // of the result
  const uint16_t* x = nullptr;       // [num_tokens, k] bf16
  const uint16_t* weight = nullptr;  // [num_experts, k] bf16
  float* logits = nullptr;           // out [num_tokens, num_experts]
};

// moe::route_tokens on the device: same rule, same bits. The fields are those of moe::RouterRule.
struct DeviceRouteTokens {
  Scoring scoring = Scoring::kSoftmaxBeforeTopK;
  int64_t num_tokens = 0;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool renormalise = false;
  float renorm_epsilon = 0;
  float routed_scaling = 1;
  int64_t num_groups = 1;
  int64_t groups_kept = 1;
  const float* logits = nullptr;           // [num_tokens, num_experts]
  const float* correction_bias = nullptr;  // [num_experts] or null
  int32_t* ids = nullptr;                  // out [num_tokens, top_k]
  float* weights = nullptr;                // out [num_tokens, top_k]
};

inline constexpr int64_t kRouteArrivals = 32;
// router_logits, route_tokens and plan_routes of few tokens in one launch: same rules, same bits. The last CTAs that
// have made their logits choose and plan. The rows of x and of the weight lie on 16 bytes.
struct RouteAndPlan {
  DeviceRouterLogits logits;  // without the sigmoid
  DeviceRouteTokens route;    // of these logits
  PlanRoutes plan;            // of these ids; its scratch is not used
  // [kRouteArrivals]: 0 before the launch and behind it. Launches that may be in flight together have words of their
  // own.
  uint32_t* arrivals = nullptr;
};
inline constexpr int64_t kMostFusedTokens = 64;
inline constexpr int64_t kMostFewRoutes = 32;  // that a warp plans
// What route_and_plan takes; experts both of the router and here. Where it is false, three calls serve.
inline constexpr bool fits_route_and_plan(int64_t num_tokens, int64_t num_experts, int64_t top_k, int64_t k) {
  return num_tokens >= 1 && num_tokens <= kMostFusedTokens && num_experts <= 512 && top_k <= 32 && k % 8 == 0 &&
         k <= 8192;
}

// --- Row-wise steps --------------------------------------------------------------------------------------------------

// Quantises each token once and writes its codes to the row of every route (slot_of_route; null: row = token, top_k 1).
// route_weight: router weight on the input (top_k 1), x' = bf16(w * x). Columns k..act_pitch-1 are written as 0.
struct QuantizeTokens {
  int64_t num_tokens = 0;
  int64_t top_k = 1;
  int64_t k = 0;
  int64_t act_pitch = 0;                   // bytes between rows of act: a multiple of 128
  const uint16_t* x = nullptr;             // [num_tokens, k] bf16
  const int32_t* slot_of_route = nullptr;  // [num_tokens, top_k]
  const float* route_weight = nullptr;     // [num_tokens] or null
  uint8_t* act = nullptr;                  // out [rows, act_pitch] e4m3
  float* act_scale = nullptr;              // out [rows]
};

// The same for rows that a tile list names (the activated rows between the two products). Of a shard: the k columns go
// to columns [offset, offset + k) of act, the others up to act_pitch are written as 0.
struct QuantizeListed {
  TileList list;
  int64_t k = 0;
  int64_t act_pitch = 0;
  const uint16_t* x = nullptr;    // [rows, k] bf16
  uint8_t* act = nullptr;         // out [rows, act_pitch] e4m3
  float* act_scale = nullptr;     // out [rows]
  int64_t offset = 0;             // a multiple of 8
  const float* absmax = nullptr;  // [rows] of the whole row, not below that of x; null: that of x
  bool list_is_older = false;     // as in DeviceW4A8Gemm
};

// absmax[r] = the largest magnitude of row r (numerics::absmax_step: NaN is passed over), 0 for rows that are not
// there.
struct RowAbsmax {
  int64_t num_rows = 0;                 // of absmax; those of x that are there come first
  int64_t k = 0;                        // a multiple of 8
  const int32_t* rows_there = nullptr;  // [1] how many rows x has; null: num_rows
  const uint16_t* x = nullptr;          // [rows there, k] bf16, 16-byte aligned
  float* absmax = nullptr;              // out [num_rows]
};

// out = bf16(x), elementwise.
struct RoundToBf16 {
  int64_t count = 0;
  const float* x = nullptr;  // [count]
  uint16_t* out = nullptr;   // [count]
};

// acc = +0; acc = fmaf(weight[t, j], row[slot[t, j]], acc) for j ascending where slot >= 0; then the shared expert with
// its gate or 1; out = bf16(acc).
struct DeviceCombine {
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t width = 0;                   // H, a multiple of 8
  const uint16_t* rows = nullptr;      // [slots, width] bf16
  const int32_t* slot = nullptr;       // [num_tokens, top_k]
  const float* weight = nullptr;       // [num_tokens, top_k]; null: 1 (the weight went on the input)
  const uint16_t* shared = nullptr;    // [num_tokens, width] bf16 or null
  const float* shared_gate = nullptr;  // [num_tokens] or null: 1
  uint16_t* out = nullptr;             // [num_tokens, width] bf16
};

// The same chain over the partial rows of a tensor-parallel rank, not rounded: what the ranks add. Rows on 16 bytes.
struct DeviceCombinePartial {
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t width = 0;                   // H, a multiple of 8
  const float* rows = nullptr;         // [slots, width]
  const int32_t* slot = nullptr;       // [num_tokens, top_k]
  const float* weight = nullptr;       // [num_tokens, top_k]; null: 1
  const float* shared = nullptr;       // [num_tokens, width] or null
  const float* shared_gate = nullptr;  // [num_tokens] or null: 1
  float* out = nullptr;                // [num_tokens, width], NaN canonical
};

// --- The grouped product ---------------------------------------------------------------------------------------------

// One of the closed list of compiled tiles.
struct GemmConfig {
  const char* name;  // "64x16"
  int32_t rows;      // out features of a tile: 64 or 128
  int32_t tokens;    // rows of activations of a tile
  int32_t ctas_per_sm;
  bool block_scales;  // compiled for 1 x 128 activation scales, too
};

enum class GemmOutput : int32_t {
  kRowsBf16,   // out [rows, n] bf16: y (+ bias), rounded
  kRowsF32,    // out [rows, n] fp32: y (+ bias), for a sum over ranks
  kActivated,  // out [rows, width] bf16: h = activation of the gate and up columns (n = 2 * width, interleaved rows; n
               // = width where the rule is not gated)
};

// Steps of few tokens (decode): each CTA of the product makes the codes of its rows itself, or gathers them. `exact`,
// groups of 128 or one scale a channel, tiles of 8 tokens that hold up to kMostInputRows rows.
inline constexpr int64_t kMostInputRows = 4;
inline constexpr int64_t kMostInputValues = 16384;  // of the rows of a tile
inline constexpr bool gathers_gemm_input(Numerics numerics, int64_t group_size) {
  return numerics == Numerics::kExact && group_size != 32 && group_size != 64;
}
// bf16 rows. With tiles `num_rows` is kMostInputRows.
inline constexpr bool fits_gemm_input(Numerics numerics, int64_t group_size, int64_t num_rows, int64_t k) {
  return gathers_gemm_input(numerics, group_size) && num_rows >= 1 && num_rows <= kMostInputRows && k % 8 == 0 &&
         num_rows * k <= kMostInputValues;
}

// Weights: layout/w4_hopper64.h, experts at expert_stride bytes. Bits do not depend on the configuration.
struct DeviceW4A8Gemm {
  Numerics numerics = Numerics::kExact;
  int64_t n = 0;
  int64_t k = 0;
  int64_t group_size = 0;
  int64_t num_experts = 1;
  TileList list;
  const uint8_t* weights = nullptr;      // [num_experts] matrices, 128-byte aligned
  int64_t expert_stride = 0;             // bytes, a multiple of 128
  const float* channel_scale = nullptr;  // vllm: [num_experts, padded_n]
  const float* bias = nullptr;           // [num_experts, padded_n] in the order of the prepared rows, or null
  const uint8_t* act = nullptr;          // [act_rows, act_pitch] e4m3; 16-byte aligned
  int64_t act_rows = 0;
  int64_t act_pitch = 0;             // bytes, a multiple of 16; columns k.. up to act_pitch are 0
  const float* act_scale = nullptr;  // [act_rows]; null with block_scale
  // What may stand in the place of codes, with a tile of 8 tokens; same bits as the step that it saves. One of:
  // bf16 rows, quantised as quantize_tokens and quantize_listed do (act null, fits_gemm_input()); a tile of the list
  // has at most kMostInputRows of them; or,
  const uint16_t* x = nullptr;  // [act_rows, k] bf16, 16-byte aligned
  // with tiles: codes of tokens, row source_row[slot] / source_divisor of act, as old as the list, and
  // act_rows counts slots; gathers_gemm_input().
  const int32_t* source_row = nullptr;
  int64_t source_divisor = 1;
  // 1 x 128 activation scales (masked layout, exact only): [num_experts, ceil(k/128), block_max_m]
  const float* block_scale = nullptr;
  int64_t block_max_m = 0;  // rows of expert e begin at e * block_max_m
  GemmOutput output = GemmOutput::kRowsBf16;
  numerics::ActivationRule activation;
  void* out = nullptr;
  int64_t out_pitch = 0;  // elements between rows of out
  int32_t config = 0;     // index into w4a8_configs()
  // The tile list was written before the kernel that comes directly in front of this one in the stream, so it may be
  // read, and weights fetched, while that kernel still runs. Means nothing where `list` has no tiles.
  bool list_is_older = false;
};

// --- Ranks -----------------------------------------------------------------------------------------------------------

// out[i] = parts of rank 0, 1, ... reduced in this order (numerics/rank_order.h), NaN canonical. `out` lies apart from
// the parts.
struct ReduceRanks {
  const float* parts = nullptr;  // rank r at parts + r * pitch: [count]
  int64_t pitch = 0;             // floats, at least count
  int32_t num_ranks = 0;
  bool takes_max = false;  // the largest instead of the sum
  int64_t count = 0;
  float* out = nullptr;  // [count]
};

// --- Preparation -----------------------------------------------------------------------------------------------------

inline constexpr int kMaxPrepareExperts = 64;

// Up to 64 experts' matrices -> layout/w4_hopper64.h (and channel scales) in one launch. Two parts (gate, up) of
// `part_n` rows each are interleaved eight and eight; one part keeps its order. n = parts * part_n.
struct DevicePrepareW4 {
  Numerics numerics = Numerics::kExact;
  W4Source source = W4Source::kUint4b8;
  int64_t part_n = 0;  // a multiple of 8
  int64_t k = 0;       // a multiple of 8
  int64_t group_size = 0;
  int32_t num_parts = 1;  // 1 or 2
  int32_t num_experts = 0;
  const void* codes[kMaxPrepareExperts][2] = {};   // per expert and part, aligned to 4 bytes
  const void* scales[kMaxPrepareExperts][2] = {};  // [part_n, groups] bf16, aligned to 2 bytes
  uint8_t* weights = nullptr;                      // out: first expert of the launch
  int64_t expert_stride = 0;
  float* channel_scale = nullptr;  // vllm: out [num_experts, padded_n], 0 behind n
  // Per expert and part [part_n] fp32, aligned to 4 bytes; read where prepared_bias is set.
  const void* bias[kMaxPrepareExperts][2] = {};
  float* prepared_bias = nullptr;  // out [num_experts, padded_n] in the order of the prepared rows, 0 behind n; or null
  // vllm, one part: per expert [part_n] fp32, aligned to 4 bytes, the absmax of the scales of the unsharded row, which
  // makes the channel scale of a row-parallel shard; null: that of the row's own scales. kStatusBadScale where it is
  // below those or not finite.
  const void* row_absmax[kMaxPrepareExperts] = {};
  uint32_t* status = nullptr;  // [1] StatusBit
};

}  // namespace quadrille::kernels
