// SPDX-License-Identifier: Apache-2.0
// The INT4 x FP8 product in the CPU order (docs/numerics.md section 3) for a share of one expert's output rows: which
// form runs, and how tokens are packed for it.
#pragma once

#include "kernels/cpu/body/w4a8_direct.h"
#include "kernels/cpu/body/w4a8_panel.h"
#include "kernels/cpu/body/w4a8_vllm_share.h"

namespace quadrille::kernels::cpu {
namespace {

// Tiles in two forms: digits where they are packed so, else direct.
template <class S>
void mixed_rows(const W4A8Gemm& gemm, const GemmShare& share, const ExpertRows& rows) {
  for_panel_tiles(share, rows, [&](const GemmShare& one, int64_t slot, int64_t tokens) {
    if (share.is_digits[slot] != 0) {
      share.digits->tile(gemm, one, slot, tokens);
    } else {
      direct_tile<S, false>(gemm, one, slot, tokens);
    }
  });
}

template <class S, bool kVllm>
void w4a8_share(const W4A8Gemm& gemm, const GemmShare& share) {
  const ExpertRows rows = expert_rows(gemm.rows, share.expert, S::kTileTokens);
  if (rows.split.rows == 0) return;
  if constexpr (kVllm && S::kByteTables) return vllm_share<S>(gemm, share, rows);
  if constexpr (!kVllm) {
    if (share.is_digits != nullptr && rows.split.rows <= share.digits->most_rows) {
      return mixed_rows<S>(gemm, share, rows);
    }
  }
  // One tile meets its weights once. For more, decoding again may be cheaper than a panel (kDirectAlways), but not the
  // rounding of `vllm`. Block scales have the panel form alone.
  const bool direct = rows.split.num_tiles == 1 || (S::kDirectAlways && !kVllm);
  if (direct && !block_scaled(gemm)) return direct_rows<S, kVllm>(gemm, share, rows);
  panel_share<S, kVllm>(gemm, share, rows);
}

// One tile of token rows as fp32 in packed order; zero behind k.
template <class S>
void pack_w4a8_tile(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  const ExpertRows rows = expert_rows(gemm.rows, expert, S::kTileTokens);
  if constexpr (S::kByteTables) {
    if (gemm.numerics == Numerics::kVllm) return pack_vllm_tile<S>(gemm, rows, tile, packed);
  }
  const int64_t kp = round_up(gemm.k, kStep);
  const int64_t first = rows.tile_slot(tile);
  const int64_t tokens = rows.tile_slot(tile + 1) - first;
  for (int64_t t = 0; t < tokens; ++t) {
    const uint8_t* codes = gemm.act + source_of(gemm.rows, first + t) * gemm.k;
    float* out = packed + first * kp + t;
    for (int64_t k = 0; k < kp; k += kStep, codes += kStep, out += kStep * tokens) {
      alignas(64) float values[kStep];
      alignas(32) uint8_t tail[kStep] = {};
      const uint8_t* from = codes;
      if (gemm.k - k < kStep) {
        for (int64_t i = 0; i < gemm.k - k; ++i) tail[i] = codes[i];
        from = tail;
      }
      for (int i = 0; i < kStep; i += S::kLanes) S::store(values + i, S::load_e4m3(from + i));
#pragma GCC unroll 32
      for (int i = 0; i < kStep; ++i) out[packed_position(i) * tokens] = values[i];
    }
  }
}

// Floats of one packed token.
template <class S>
int64_t packed_w4a8_floats(const W4A8Gemm& gemm) {
  if (S::kByteTables && gemm.numerics == Numerics::kVllm) return vllm_row_floats(gemm.k);
  return round_up(gemm.k, kStep);
}

}  // namespace
}  // namespace quadrille::kernels::cpu
