// SPDX-License-Identifier: Apache-2.0
// The dense bf16 product: tokens are the rows of mma m16n8k16, features its columns, both through a ring of stages
// filled by 16-byte asynchronous copies (rows may be gathered). Every tile makes the same chain for an output: k
// ascending in steps of 16 within a piece of 256, pieces added in ascending order.
#pragma once

#include "kernels/cuda/bf16_gemm/config.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/chain.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "numerics/activation.h"

namespace quadrille::kernels::cuda {

// A call: inlined, forty of them are most of the kernel's code and of its compile time.
__device__ __noinline__ float dense_activation(numerics::ActivationRule rule, Numerics arithmetic, float gate,
                                               float up) {
  return arithmetic == Numerics::kExact ? numerics::activation_exact(rule, gate, up)
                                        : numerics::activation_vllm(rule, gate, up);
}

struct DenseWork {
  int64_t expert;
  int64_t first_row;  // slot
  int64_t num_rows;
  int64_t feature_tile;
};

// Where this thread's parts of a stage come from: piece `piece` of its token and weight rows; null: zeros. Weights are
// written by no kernel of a step, so theirs may be fetched before the predecessor has ended; tokens_of() comes behind.
template <typename Tile>
struct DenseSource {
  const uint16_t* token[Tile::kTokenRows];
  const uint16_t* weight[Tile::kWeightRows];
  int64_t k;

  __device__ __forceinline__ DenseSource(const DeviceBf16Gemm& p, const DenseWork& w, bool gated) : k(p.k) {
    const int row = static_cast<int>(threadIdx.x) / 8;
    const int column = static_cast<int>(threadIdx.x) % 8 * 8;
#pragma unroll
    for (int i = 0; i < Tile::kWeightRows; ++i) {
      const int64_t n = row_of_slot(w.feature_tile, row + i * Tile::kRowsAtOnce, gated, p.n);
      weight[i] = n < p.n ? p.weights + w.expert * p.expert_stride + n * p.k + column : nullptr;
    }
  }
  __device__ __forceinline__ void tokens_of(const DeviceBf16Gemm& p, const DenseWork& w) {
    const int row = static_cast<int>(threadIdx.x) / 8;
    const int column = static_cast<int>(threadIdx.x) % 8 * 8;
#pragma unroll
    for (int i = 0; i < Tile::kTokenRows; ++i) {
      const int64_t slot = row + i * Tile::kRowsAtOnce;
      token[i] = nullptr;
      if (slot >= w.num_rows) continue;
      int64_t source = w.first_row + slot;
      if (p.source_row != nullptr) source = p.source_row[source] / p.source_divisor;
      token[i] = p.x + source * p.x_pitch + column;
    }
  }
  __device__ __forceinline__ void fetch_tokens(uint32_t stage, int64_t first_k, const void* any) const {
    const int row = static_cast<int>(threadIdx.x) / 8;
    const int piece = static_cast<int>(threadIdx.x) % 8;
    const bool inside = first_k + piece * 8 < k;
#pragma unroll
    for (int i = 0; i < Tile::kTokenRows; ++i) {
      const bool exists = inside && token[i] != nullptr;
      ptx::copy16_async(stage + stage_place(row + i * Tile::kRowsAtOnce, piece), exists ? token[i] + first_k : any,
                        exists);
    }
  }
  __device__ __forceinline__ void fetch_weights(uint32_t stage, int64_t first_k, const void* any) const {
    const int row = static_cast<int>(threadIdx.x) / 8;
    const int piece = static_cast<int>(threadIdx.x) % 8;
    const bool inside = first_k + piece * 8 < k;
#pragma unroll
    for (int i = 0; i < Tile::kWeightRows; ++i) {
      const bool exists = inside && weight[i] != nullptr;
      ptx::copy16_async(stage + Tile::kWeightsAt + stage_place(row + i * Tile::kRowsAtOnce, piece),
                        exists ? weight[i] + first_k : any, exists);
    }
  }
};

template <typename Tile>
class DenseSums {
 public:
  __device__ __forceinline__ DenseSums()
      : lane_(static_cast<int>(threadIdx.x) % 32),
        token_warp_(static_cast<int>(threadIdx.x) / 32 % Tile::kTokenWarps),
        feature_warp_(static_cast<int>(threadIdx.x) / 32 / Tile::kTokenWarps) {
    clear(piece_);
    clear(total_);
  }

  // Words 2h and 2h + 1 of chunk c are the k of step (c, h) of both operands: 32 c + 8 t + 4 h + {0, 1} and {2, 3}.
  __device__ __forceinline__ void add(const uint8_t* stage) {
    const int g = lane_ / 4, t = lane_ % 4;
    const uint8_t* tokens = stage + token_warp_ * (Tile::kRowTiles * 16 * 128);
    const uint8_t* weights = stage + Tile::kWeightsAt + feature_warp_ * (32 * 128);
#pragma unroll
    for (int c = 0; c < kStageK / 32; ++c) {
      uint4 b[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) b[j] = *reinterpret_cast<const uint4*>(weights + stage_place(8 * j + g, 4 * c + t));
#pragma unroll
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        const uint4 low = *reinterpret_cast<const uint4*>(tokens + stage_place(16 * m + g, 4 * c + t));
        const uint4 high = *reinterpret_cast<const uint4*>(tokens + stage_place(16 * m + 8 + g, 4 * c + t));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          ptx::mma_bf16(piece_[m][j], low.x, high.x, low.y, high.y, b[j].x, b[j].y);
          ptx::mma_bf16(piece_[m][j], low.z, high.z, low.w, high.w, b[j].z, b[j].w);
        }
      }
    }
  }
  // Ends a piece.
  __device__ __forceinline__ void fold() {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 16; ++i) total_[m][i / 4][i % 4] = total_[m][i / 4][i % 4] + piece_[m][i / 4][i % 4];
    }
    clear(piece_);
  }

  __device__ __forceinline__ void store(const DeviceBf16Gemm& p, const DenseWork& w, bool gated) const {
    const int64_t first = first_feature(w.feature_tile, feature_warp_, lane_ % 4, gated);
    if (first >= (gated ? p.n / 2 : p.n)) return;
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = (token_warp_ * Tile::kRowTiles + m) * 16 + r * 8 + lane_ / 4;
        if (row >= w.num_rows) continue;
        const int64_t at = (w.first_row + row) * p.out_pitch + first;
        const float* bias = p.bias == nullptr ? nullptr : p.bias + w.expert * p.n + first;
        if (gated) {
          store_gated(p, bias, m, r, at);
        } else {
          store_row(p, bias, m, r, at);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static void clear(float (&sum)[Tile::kRowTiles][4][4]) {
#pragma unroll
    for (int m = 0; m < Tile::kRowTiles; ++m) {
#pragma unroll
      for (int i = 0; i < 16; ++i) sum[m][i / 4][i % 4] = 0.0f;
    }
  }
  // Features first + 4 e + j: column 2 t + e of tile j.
  __device__ __forceinline__ void store_row(const DeviceBf16Gemm& p, const float* bias, int m, int r,
                                            int64_t at) const {
    float y[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      y[i] = total_[m][i % 4][2 * r + i / 4];
      if (bias != nullptr) y[i] = y[i] + __ldg(bias + i);
    }
    if (p.output == GemmOutput::kActivated) {
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = dense_activation(p.activation, p.numerics, y[i], y[i]);
    }
    if (p.output == GemmOutput::kRowsF32) {
      float4* out = reinterpret_cast<float4*>(static_cast<float*>(p.out) + at);
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = numerics::canonical(y[i]);
      out[0] = make_float4(y[0], y[1], y[2], y[3]);
      out[1] = make_float4(y[4], y[5], y[6], y[7]);
      return;
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + at) = make_uint4(
        ptx::bf16_pair(y[0], y[1]), ptx::bf16_pair(y[2], y[3]), ptx::bf16_pair(y[4], y[5]), ptx::bf16_pair(y[6], y[7]));
  }
  // Channels first + 2 e + j: gate in tile j, up in tile j + 2.
  __device__ __forceinline__ void store_gated(const DeviceBf16Gemm& p, const float* bias, int m, int r,
                                              int64_t at) const {
    float h[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float gate = total_[m][i % 2][2 * r + i / 2];
      float up = total_[m][i % 2 + 2][2 * r + i / 2];
      if (bias != nullptr) {
        gate = gate + __ldg(bias + i);
        up = up + __ldg(bias + p.n / 2 + i);
      }
      h[i] = dense_activation(p.activation, p.numerics, gate, up);
    }
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p.out) + at) =
        make_uint2(ptx::bf16_pair(h[0], h[1]), ptx::bf16_pair(h[2], h[3]));
  }

  int lane_, token_warp_, feature_warp_;
  float piece_[Tile::kRowTiles][4][4];
  float total_[Tile::kRowTiles][4][4];
};

// The CTA's tile; false: there is none (the list is shorter than its bound).
template <typename Tile>
__device__ __forceinline__ bool dense_work(const DeviceBf16Gemm& p, DenseWork& w) {
  w.feature_tile = blockIdx.y;
  if (p.list.tiles == nullptr) {
    w.expert = 0;
    w.first_row = static_cast<int64_t>(blockIdx.x) * Tile::kTokens;
    w.num_rows = min(static_cast<int64_t>(Tile::kTokens), p.list.num_rows - w.first_row);
    return true;
  }
  if (static_cast<int32_t>(blockIdx.x) >= *p.list.num_tiles) return false;
  const TokenTile& tile = p.list.tiles[blockIdx.x];
  w.expert = tile.expert;
  w.first_row = tile.first_row;
  w.num_rows = tile.num_rows;
  return true;
}

template <typename Tile>
__global__ void __launch_bounds__(Tile::kThreads) dense_kernel(const __grid_constant__ DeviceBf16Gemm p) {
  extern __shared__ __align__(128) uint8_t shared[];
  if (p.list.tiles != nullptr) ptx::wait_for_predecessor();
  DenseWork work;
  if (!dense_work<Tile>(p, work)) return;
  const bool gated = p.output == GemmOutput::kActivated && p.activation.gated();
  DenseSource<Tile> source(p, work, gated);
  const uint32_t ring = ptx::shared_address(shared);
  const int stages = static_cast<int>((p.k + kStageK - 1) / kStageK);
#pragma unroll
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (s < stages) source.fetch_weights(ring + s * Tile::kStageBytes, static_cast<int64_t>(s) * kStageK, p.weights);
  }
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  source.tokens_of(p, work);
  // The first group has the weights of all of these stages.
#pragma unroll
  for (int s = 0; s < Tile::kStages - 1; ++s) {
    if (s < stages) source.fetch_tokens(ring + s * Tile::kStageBytes, static_cast<int64_t>(s) * kStageK, p.weights);
    ptx::copies_commit();
  }
  DenseSums<Tile> sums;
  int place = 0, refill = Tile::kStages - 1;
  for (int s = 0; s < stages; ++s) {
    ptx::copies_wait<Tile::kStages - 2>();
    __syncthreads();  // stage s stands for all, and stage s - 1 has been read
    const int ahead = s + Tile::kStages - 1;
    if (ahead < stages) {
      const uint32_t stage = ring + refill * Tile::kStageBytes;
      source.fetch_tokens(stage, static_cast<int64_t>(ahead) * kStageK, p.weights);
      source.fetch_weights(stage, static_cast<int64_t>(ahead) * kStageK, p.weights);
    }
    ptx::copies_commit();
    sums.add(shared + place * Tile::kStageBytes);
    place = place + 1 == Tile::kStages ? 0 : place + 1;
    refill = refill + 1 == Tile::kStages ? 0 : refill + 1;
    if ((s + 1) % (kPieceK / kStageK) == 0 || s + 1 == stages) sums.fold();
  }
  sums.store(p, work, gated);
}

}  // namespace quadrille::kernels::cuda
