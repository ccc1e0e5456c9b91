// SPDX-License-Identifier: Apache-2.0
// The folds of a single whose blocks were spread over CTAs, by the CTAs of one cluster, a row of heads after the other
// each: the same chain as if one CTA had had all blocks. Factors are found side by side, a block a lane (a running
// maximum has one value however it is found); the sums are a chain. Called by singles.cuh.
#pragma once

#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/attention/block.cuh"

namespace quadrille::kernels::cuda {

inline constexpr int kFoldBlocks = 32;  // of a piece: a lane each
inline constexpr int kFoldStages = 3;

// The factors of the lane's block, of up to 32 blocks in ascending order behind those whose largest score is `before`;
// a lane without a block has -inf. top: the largest of all. Whole warps.
struct BlockFactors {
  Fold fold;
  float top;
};
__device__ __forceinline__ BlockFactors block_factors(float own, float before) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float upto = own;  // the largest of the lanes up to this one
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float other = __shfl_up_sync(kAllLanes, upto, distance);
    if (lane >= distance) upto = fmaxf(upto, other);
  }
  const float lower = __shfl_up_sync(kAllLanes, upto, 1);
  const float until = lane == 0 ? before : fmaxf(before, lower);
  const float top = fmaxf(before, __shfl_sync(kAllLanes, upto, 31));
  return {fold_factors(until, own, fmaxf(until, own)), top};
}

// What lies in shared memory while a CTA folds.
template <int Dim>
struct FoldRoom {
  static constexpr int kPitch = static_cast<int>(partial_pitch(Dim));
  static constexpr int kStageFloats = kFoldBlocks * kPitch;
  static_assert(kFoldStages * kStageFloats * 4 <= 2 * Tile<Dim>::kBytes, "the stages fit where two warps had blocks");
  static_assert(kFoldBlocks * 16 <= 8 * kPitch * 4, "the factors fit where a warp had its results");
  float* stages;    // [kFoldStages, kStageFloats]
  float4* factors;  // [kFoldBlocks] of the warp: keep, take, sum of weights
};

// The results of a single that a CTA folds, as one sequence of pieces: up to 32 blocks of one head.
template <int Dim>
struct FoldPieces {
  const float* partials;  // of head 0 of the single
  int64_t head_floats;    // between heads
  int64_t num_blocks;
  int chunks;  // pieces of a head

  __device__ __forceinline__ int blocks_of(int chunk) const {
    const int64_t left = num_blocks - static_cast<int64_t>(chunk) * kFoldBlocks;
    return left < kFoldBlocks ? static_cast<int>(left) : kFoldBlocks;
  }
  // Starts the copy of a piece; every thread commits once.
  __device__ __forceinline__ void fetch(int64_t head, int chunk, float* stage) const {
    constexpr int kPitch = FoldRoom<Dim>::kPitch;
    const float* from = partials + head * head_floats + static_cast<int64_t>(chunk) * kFoldBlocks * kPitch;
    const int vectors = blocks_of(chunk) * (kPitch / 4);
    for (int i = static_cast<int>(threadIdx.x); i < vectors; i += static_cast<int>(blockDim.x)) {
      ptx::copy16_async(ptx::shared_address(stage + 4 * i), from + 4 * i, true);
    }
  }
};

// The chain of one head: a thread has every blockDim.x-th dimension.
template <int Dim>
struct FoldChain {
  static constexpr int kMost = (Dim + 63) / 64;
  static constexpr int kPitch = FoldRoom<Dim>::kPitch;
  Running running;
  float sum[kMost];

  __device__ __forceinline__ void begin() {
    running = {};
#pragma unroll
    for (int d = 0; d < kMost; ++d) sum[d] = 0.0f;
  }
  // The next `count` blocks, in `stage`.
  __device__ __forceinline__ void add(const float* stage, int count, float4* factors) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const bool has_block = lane < count;
    const BlockFactors own = block_factors(has_block ? stage[lane * kPitch + Dim] : -__builtin_inff(), running.top);
    const float own_norm = has_block ? stage[lane * kPitch + Dim + 1] : 0.0f;
    factors[lane] = make_float4(own.fold.keep, own.fold.take, own_norm, 0.0f);
    running.top = own.top;
    __syncwarp();  // the warp's factors stand
#pragma unroll 8
    for (int j = 0; j < count; ++j) {
      const float4 f = factors[j];
      const Fold fold{f.x, f.y};
      running.norm = folded(running.norm, fold, f.z);
#pragma unroll
      for (int d = 0; d < kMost; ++d) {
        const int dim = d * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
        if (dim < Dim) sum[d] = folded(sum[d], fold, stage[j * kPitch + dim]);
      }
    }
    __syncwarp();  // they have been read
  }
  __device__ __forceinline__ void store(uint16_t* out, int64_t head_dim) const {
#pragma unroll
    for (int d = 0; d < kMost; ++d) {
      const int dim = d * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
      if (dim < head_dim) out[dim] = static_cast<uint16_t>(ptx::bf16_pair(sum[d] / running.norm, 0.0f));
    }
  }
};

// What a CTA folds of the heads of one KV head: rows first, first + step, ...
struct FoldRows {
  int first, step, end;
};

// head_of(row): the rank's query head of a row, -1: none. out: the token's row. All threads of the CTA.
template <int Dim, typename HeadOf>
__device__ __forceinline__ void fold_spread(const FoldPieces<Dim>& pieces, const FoldRows& rows, const HeadOf& head_of,
                                            const FoldRoom<Dim>& room, uint16_t* out, int64_t head_dim) {
  constexpr int kStage = FoldRoom<Dim>::kStageFloats;
  const int count = rows.first < rows.end ? (rows.end - rows.first + rows.step - 1) / rows.step * pieces.chunks : 0;
  const auto head_at = [&](int k) { return head_of(rows.first + k / pieces.chunks * rows.step); };
  const auto fetch = [&](int k) {
    float* const stage = room.stages + k % kFoldStages * kStage;
    if (k < count && head_at(k) >= 0) pieces.fetch(head_at(k), k % pieces.chunks, stage);
    ptx::copies_commit();
  };
  for (int k = 0; k < kFoldStages - 1; ++k) fetch(k);
  FoldChain<Dim> chain;
  for (int k = 0; k < count; ++k) {
    ptx::copies_wait<kFoldStages - 2>();
    __syncthreads();  // piece k stands, and everybody has read the one before
    fetch(k + kFoldStages - 1);
    const int64_t head = head_at(k);
    if (head < 0) continue;
    const int chunk = k % pieces.chunks;
    if (chunk == 0) chain.begin();
    chain.add(room.stages + k % kFoldStages * kStage, pieces.blocks_of(chunk), room.factors);
    if (chunk == pieces.chunks - 1) chain.store(out + head * head_dim, head_dim);
  }
}

}  // namespace quadrille::kernels::cuda
