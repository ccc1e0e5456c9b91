// SPDX-License-Identifier: Apache-2.0
// What one instruction-set unit offers the driver: single-threaded functions over a share of a problem. A share never
// changes a bit of the result. Plain data only: this header is seen by units that must not emit a weak symbol.
#pragma once

#include <cstdint>

#include "kernels/api/problems.h"

namespace quadrille::kernels::cpu {

// Rows of a GEMM are packed in tiles of tokens: a tile of T tokens is [kp][T] fp32, inside each k32 step the 16 even
// positions before the 16 odd ones (W4A8), or k ascending (bf16). An expert's m rows form ceil(m / tile_tokens) tiles
// of nearly equal size, the larger ones first; the tiles of slots [a, b) lie at packed + a * kp. `vllm` is packed as
// body/w4a8_vllm_pack.h says where the unit has the integer form, packed_w4a8_floats a token instead of kp.
// Output rows are cut into panels of 32.
inline constexpr int kPanelRows = 32;
inline constexpr int kPanelDepth = 128;  // k positions decoded at a time
inline constexpr int kBlockTiles = 10;   // token tiles that share one decoded panel

// Floats of scratch that a share of either GEMM needs: one decoded panel, and sums of one token block.
inline constexpr int64_t kGemmScratchFloats = kPanelRows * kPanelDepth + kPanelRows * kBlockTiles * 16;

// The `exact` product of some tiles by integer digits (body/w4a8_digits.h): the bits of the fma chains with fewer
// operations, for tiles whose sums in fp32 would be exact. Such a tile is packed as records of kDigitWords 32-bit
// words, [step][token], in the place of its floats.
inline constexpr int kDigitWords = 32;

struct DigitParts {
  int64_t most_rows;  // an expert with more rows is left to the fma forms

  // Packs tile `tile` of expert `expert`; false where its sums may round or it holds a NaN: nothing is packed then.
  bool (*pack)(const W4A8Gemm&, int64_t expert, int64_t tile, float* packed);
  // The panels of the share for the packed tile of `tokens` tokens that begins at `slot`.
  void (*tile)(const W4A8Gemm&, const struct GemmShare&, int64_t slot, int64_t tokens);
};

// The `vllm` product of a unit with further instructions.
struct VllmParts {
  void (*gemm)(const W4A8Gemm&, const struct GemmShare&);
};

// A share of a grouped product: panels [panel_begin, panel_end) of one expert, all its rows.
struct GemmShare {
  int64_t expert = 0;
  int64_t panel_begin = 0;
  int64_t panel_end = 0;
  const float* packed = nullptr;  // tiles, see above
  float* scratch = nullptr;       // [kGemmScratchFloats]
  // W4A8: which tiles are packed as digits, by the tile's first slot, and the form that packed them; null: none.
  const uint8_t* is_digits = nullptr;
  const DigitParts* digits = nullptr;
};

struct IsaParts {
  uint64_t (*num_calls)();
  // Tokens of the largest tile of each product.
  int w4a8_tile_tokens;
  int bf16_tile_tokens;

  // Floats of one packed token of that product; null: k rounded up to 32.
  int64_t (*packed_w4a8_floats)(const W4A8Gemm&);
  // Packs tile `tile` of expert `expert`.
  void (*pack_w4a8)(const W4A8Gemm&, int64_t expert, int64_t tile, float* packed);
  void (*pack_bf16)(const Bf16Gemm&, int64_t expert, int64_t tile, float* packed);
  void (*w4a8_gemm)(const W4A8Gemm&, const GemmShare&);
  void (*bf16_gemm)(const Bf16Gemm&, const GemmShare&);
  const DigitParts* digits;       // null: the unit has no such form
  const DigitParts* digits_vnni;  // takes its place where the processor has AVX512_VNNI
  const VllmParts* vllm_vnni;     // takes the place of w4a8_gemm for `vllm` there; null: none

  // Rows (tokens) [begin, end).
  void (*quantize_rows)(const QuantizeRows&, int64_t begin, int64_t end);
  void (*gated_activation)(const GatedActivation&, int64_t begin, int64_t end);
  void (*rms_norm)(const RmsNorm&, int64_t begin, int64_t end);
  void (*rope)(const Rope&, int64_t begin, int64_t end);
  void (*combine)(const Combine&, int64_t begin, int64_t end);
  // Elements [begin, end).
  void (*add_residual)(const AddResidual&, int64_t begin, int64_t end);
  // Logits [begin, end) of the row-major [num_tokens, num_experts].
  void (*router_logits)(const RouterLogits&, int64_t begin, int64_t end);
  // Pairs (token, kv head) [begin, end) of the row-major [num_tokens, num_kv_heads]; scratch [kAttentionHeads *
  // head_dim].
  void (*attention)(const Attention&, int64_t begin, int64_t end, float* scratch);
};

inline constexpr int kAttentionHeads = 8;  // the most query heads that share one reading of a key block

extern const IsaParts kGenericParts, kAvx2Parts, kAvx512Parts, kAmxParts;
extern const IsaParts kVdpbf16Parts;
extern const DigitParts kAvx512VnniDigits;
extern const VllmParts kAvx512VnniVllm;

// The tiles of one expert's rows.
struct TileSplit {
  int64_t rows = 0;       // of the expert
  int64_t num_tiles = 0;  // ceil(rows / tile_tokens)
};

inline __attribute__((always_inline)) int64_t tile_begin(const TileSplit& split, int64_t tile) {
  const int64_t base = split.rows / split.num_tiles;
  const int64_t larger = split.rows % split.num_tiles;
  return tile * base + (tile < larger ? tile : larger);
}

}  // namespace quadrille::kernels::cpu
