// SPDX-License-Identifier: Apache-2.0
// The index arithmetic of the plan kernels, apart from threads: which expert an id means, which share of the routes a
// warp has, which rows a tile has. Plain functions, so that tests/unit/kernels_cuda_logic runs the whole plan on a CPU.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/api/device_problems.h"

namespace quadrille::kernels::cuda {

inline constexpr int kWarp = 32;

// --- One block: up to kMostOneBlockRoutes routes and kSmallPlanExperts experts
// ----------------------------------------

inline constexpr int kSmallPlanExperts = 512;
inline constexpr int kSmallPlanWarps = 32;
inline constexpr int kSmallPlanSteps = 8;  // routes a lane holds in registers
inline constexpr int kSmallPlanRoutes = kSmallPlanWarps * kSmallPlanSteps * kWarp;
// 8,192 routes take one block 23.5 us, three launches of many 14.
inline constexpr int kMostOneBlockRoutes = kSmallPlanRoutes / 2;

constexpr bool is_small_plan(int64_t num_routes, int64_t num_experts) {
  return num_routes <= kMostOneBlockRoutes && num_experts <= kSmallPlanExperts;
}

// Warp w has the routes [w * steps * 32, (w + 1) * steps * 32); every expert has a thread.
struct SmallPlanShape {
  int steps;     // of 32 routes, each warp
  int segments;  // warps that have routes
  int threads;
};
constexpr SmallPlanShape small_plan_shape(int64_t num_routes, int64_t num_experts, int warps = kSmallPlanWarps) {
  const int pieces = num_routes == 0 ? 1 : static_cast<int>((num_routes + kWarp - 1) / kWarp);
  const int steps = (pieces + warps - 1) / warps;
  const int segments = (pieces + steps - 1) / steps;
  const int expert_warps = static_cast<int>((num_experts + kWarp - 1) / kWarp);
  return {steps, segments, kWarp * (segments > expert_warps ? segments : expert_warps)};
}

// --- Many blocks: chunks of kPlanChunk routes ------------------------------------------------------------------------

inline constexpr int kPlanWindow = 1024;  // experts that a block counts at a time
inline constexpr int kChunkWarps = static_cast<int>(kPlanChunk) / kWarp;
inline constexpr int kScanExperts = 8;  // experts of a block of the scan over chunks: one 32-byte sector of a row
inline constexpr int kScanThreads = 1024;
inline constexpr int kScanSegments = kScanThreads / kScanExperts;

// Segment s of the scan has the chunks [s * length, min(chunks, (s + 1) * length)).
QD_HD constexpr int64_t scan_segment_length(int64_t num_chunks) {
  return (num_chunks + kScanSegments - 1) / kScanSegments;
}

// Rank of a route among the routes of its chunk that have its expert: those of earlier warps, then those of lower
// lanes. counts [kChunkWarps][kPlanWindow]: routes of each expert of the window in each warp.
QD_HD constexpr int32_t rank_in_chunk(const uint8_t* counts, int warp, int place_in_window, int lower_lanes) {
  int32_t rank = lower_lanes;
  for (int w = 0; w < kChunkWarps; ++w) rank += w < warp ? counts[w * kPlanWindow + place_in_window] : 0;
  return rank;
}

// --- Ids and tiles ---------------------------------------------------------------------------------------------------

struct LocalExpert {
  int32_t expert;  // -1: not here
  bool bad;        // kStatusBadExpertId
};
QD_HD constexpr LocalExpert local_expert(int32_t id, const int32_t* map, int64_t map_size, int64_t num_experts) {
  if (id == -1) return {-1, false};
  const int64_t known = map != nullptr ? map_size : num_experts;
  if (id < 0 || id >= known) return {-1, true};
  const int32_t here = map != nullptr ? map[id] : id;
  const bool bad = here < -1 || here >= num_experts;
  return {bad ? -1 : here, bad};
}

// Rows of an expert of the masked layout; `bad`: kStatusBadMaskedCount.
struct MaskedRows {
  int32_t rows;
  bool bad;
};
QD_HD constexpr MaskedRows masked_rows(int32_t count, int64_t max_m) {
  if (count < 0) return {0, true};
  if (count > max_m) return {static_cast<int32_t>(max_m), true};
  return {count, false};
}

QD_HD constexpr int32_t tiles_of_rows(int32_t rows, int32_t tile_tokens) {
  return rows / tile_tokens + (rows % tile_tokens != 0 ? 1 : 0);
}

// Tile i of an expert: full tiles, then what is left.
QD_HD constexpr TokenTile token_tile(int32_t expert, int32_t first_row, int32_t rows, int32_t first_tile,
                                     int32_t tile_tokens, int32_t i) {
  const int32_t left = rows - i * tile_tokens;
  return {expert,     first_row + i * tile_tokens,      left < tile_tokens ? left : tile_tokens,
          first_tile, tiles_of_rows(rows, tile_tokens), {0, 0, 0}};
}

}  // namespace quadrille::kernels::cuda
