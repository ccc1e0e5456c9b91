// SPDX-License-Identifier: Apache-2.0
// The closed list of tiles of the grouped W4A8 product, what a kernel is compiled for, and its shared memory as a plan.
// Weights are the wgmma A operand from registers (64 out features a warpgroup), activations are B: no token padding,
// one family for decode and prefill. docs/kernels/hopper_w4a8.md has the picture.
#pragma once

#include <cstdint>

#include "kernels/api/device_problems.h"
#include "layout/w4_hopper64.h"

namespace quadrille::kernels::cuda {

struct TileShape {
  int warpgroups;   // consumer warpgroups, 64 out features each
  int tokens;       // N of the wgmma
  int stages;       // ring of k128 stages
  int ctas_per_sm;  // what registers and shared memory are cut for
  int cluster;      // CTAs that share a token tile: each fetches its part and multicasts it to all
  int k_ctas = 0;   // CTAs of four warpgroups that share the records of an item (split_plan.h); 0: one walks them all
};

// Small tiles want many independent CTAs a multiprocessor and 48..64 KB of weights in flight together (B1 of the
// microbenchmarks); the large one wants few bytes from L2 for each operation: a pair of CTAs with
// neighbouring out features shares the tokens, since L2 alone delivers 30 bytes a clock and the tile eats 35.
inline constexpr TileShape kTileShapes[] = {
    {1, 8, 6, 4, 1},
    {1, 16, 6, 4, 1},
    {1, 32, 5, 3, 1},
    {1, 64, 4, 3, 1},
    {2, 128, 5, 1, 2},
    // stages of the shared forms: split_plan.h
    {1, 8, 0, 2, 1, 1},
    {1, 8, 0, 2, 1, 2},
    {1, 8, 0, 2, 1, 4},
    {1, 16, 0, 1, 1, 1},
    {1, 16, 0, 1, 1, 2},
    {1, 16, 0, 1, 1, 4},
    // the wide tile: wide_plan.h
    {2, 160, 5, 1, 2},
};
inline constexpr int kNumTiles = sizeof(kTileShapes) / sizeof(kTileShapes[0]);

inline constexpr int kLargeTile = 4;
inline constexpr int kWideTile = 11;
static_assert(kTileShapes[kLargeTile].tokens == 128 && kTileShapes[kWideTile].tokens == 160);

// `vllm` is one chain of steps over K, and 1 x 128 scales have no shared form: the plain tile of as many tokens. The
// wide tile is written for `exact` and groups of 128: elsewhere the large one takes its token tiles in parts.
inline constexpr int plain_tile(int tile) {
  if (tile == kWideTile) return kLargeTile;
  if (kTileShapes[tile].k_ctas == 0) return tile;
  int plain = 0;
  while (kTileShapes[plain].tokens != kTileShapes[tile].tokens) ++plain;
  return plain;
}

// What a kernel is compiled for. kBlock: 1 x 128 activation scales.
enum class Arithmetic { kExact, kVllm, kBlock };

template <int Tile, Arithmetic A, int GroupK>
struct GemmPlan {
  static constexpr TileShape kShape = kTileShapes[Tile];
  static constexpr Arithmetic kArithmetic = A;
  static constexpr bool kVllm = A == Arithmetic::kVllm;
  static constexpr bool kResident = false;  // resident.cuh: all codes of an item lie in shared memory
  static constexpr int kWarpgroups = kShape.warpgroups;
  static constexpr int kTokens = kShape.tokens;
  static constexpr int kStages = kShape.stages;
  static constexpr int kCluster = kShape.cluster;
  static constexpr int kConsumerThreads = kWarpgroups * 128;
  // One producer warp; registers move to the consumers in whole warpgroups only (setmaxnreg), hence three idle ones
  // beside it where a tile needs more than an even share.
  static constexpr bool kMovesRegisters = kWarpgroups > 1;
  static constexpr int kThreads = kConsumerThreads + (kMovesRegisters ? 128 : 32);
  static constexpr int kGroups = 128 / GroupK;  // scale groups of a record
  static constexpr int kStepsPerGroup = 4 / kGroups;
  // Several group sums, or 1 x 128 scales, take registers: fewer CTAs a multiprocessor from 16 tokens on.
  static constexpr bool kWide = (kGroups > 1 && !kVllm) || A == Arithmetic::kBlock;
  static constexpr int kCtas = !kWide || kTokens <= 8 || kShape.ctas_per_sm == 1 ? kShape.ctas_per_sm
                               : kTokens <= 16                                   ? 3
                               : A == Arithmetic::kBlock && kGroups == 4         ? 1
                                                                                 : 2;
  // Group sums that are in flight at once: as many as the registers of the tile allow.
  static constexpr int kSetsThatFit = kTokens <= 32 ? 4 : kTokens <= 64 ? 2 : 1;
  static constexpr int kSets = kVllm ? 1 : kGroups < kSetsThatFit ? kGroups : kSetsThatFit;

  static constexpr int kRecordBytes = layout::kRecordCodeBytes + layout::kRecordRows * kGroups * (kVllm ? 1 : 2);
  static constexpr int kTokenBytes = kTokens * layout::kRecordK;
  // Accumulators on their way to the output, [tokens][64 out features] fp32 a warpgroup; rows padded by 4 words, so
  // that the eight rows and four token pairs of a warp's store fall into 32 banks.
  static constexpr int kStagingPitch = layout::kRecordRows + 4;
  static constexpr int kStagingBytes = kTokens * (kStagingPitch + 1) * 4;  // the rows' factors behind them
  static constexpr int kLutBytes = kVllm ? 256 * 16 : 0;

  // Offsets in shared memory. Token tiles come first: 128-byte swizzle needs 1024-byte alignment.
  static constexpr int kTokensAt = 0;
  static constexpr int kWeightsAt = kStages * kTokenBytes;
  static constexpr int kStagingAt = kWeightsAt + kStages * kWarpgroups * kRecordBytes;
  static constexpr int kLutAt = kStagingAt + kWarpgroups * kStagingBytes;
  static constexpr int kBarriersAt = kLutAt + kLutBytes;
  static constexpr int kSharedBytes = kBarriersAt + kStages * 16;
  // 384 threads at 168 registers: 2 * 128 * 224 + 128 * 56 fit the same file; a producer of 40 spills.
  static __device__ __forceinline__ void take_registers() {
    if constexpr (kMovesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
  }
  static __device__ __forceinline__ void give_registers() {
    if constexpr (kMovesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
  }
  static_assert(kSharedBytes + 1024 <= 232448, "more shared memory than a block can have");
  static_assert((kSharedBytes + 2048) * kCtas <= 233472, "more than the multiprocessor has");
};

// What the kernel reads besides the tensor map of the activations.
struct GemmArguments {
  TileList list;
  const uint8_t* weights;
  int64_t expert_stride;
  const float* channel_scale;
  const float* bias;
  const uint8_t* act;
  int64_t act_pitch;
  const float* act_scale;
  const float* block_scale;
  int64_t block_max_m;
  void* out;
  int64_t out_pitch;
  int32_t n;
  int32_t padded_n;
  int32_t row_blocks;  // records over n
  int32_t k_records;   // records over k
  int32_t parts = 1;   // of the kernel's tokens that a tile of the list is taken in
  bool list_is_known;  // before the predecessor ends
  GemmOutput output;
  numerics::ActivationRule activation;
};

}  // namespace quadrille::kernels::cuda
