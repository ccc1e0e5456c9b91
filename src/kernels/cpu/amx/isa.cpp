// SPDX-License-Identifier: Apache-2.0
// The amx unit: the W4A8 product of experts with enough rows runs on tiles, everything else is the bodies over the
// AVX-512 vocabulary, compiled into this unit. The bits are those of the other tables either way. No weak symbol of
// this unit may reach a machine without its instructions (see avx512/isa.cpp).
#include "kernels/cpu/avx512/simd.h"

#include "kernels/cpu/amx/tile_counts.h"
#include "kernels/cpu/amx/w4a8_tiles.h"
#include "kernels/cpu/body/parts.h"

namespace quadrille::kernels::cpu {
namespace {

// Rows of an expert from which on tiles are used (clocks by count, docs/kernels/cpu_w4a8.md, section AMX).
constexpr int64_t kTileRowsExact = 4;
constexpr int64_t kTileRowsVllm = 16;

uint64_t g_shares = 0;

uint64_t num_shares() {
  return __atomic_load_n(&g_shares, __ATOMIC_RELAXED);
}

constexpr IsaParts kVectorParts = parts_of<Simd>();

bool takes_tiles(const W4A8Gemm& gemm, int64_t expert) {
  const int64_t rows = gemm.rows.offsets[expert + 1] - gemm.rows.offsets[expert];
  return rows >= (gemm.numerics == Numerics::kVllm ? kTileRowsVllm : kTileRowsExact);
}

// Floats from where an expert's tokens lie at kp floats each to where they lie among rows of the vector forms.
int64_t wider_rows(const W4A8Gemm& gemm, int64_t expert) {
  return gemm.rows.offsets[expert] * (kVectorParts.packed_w4a8_floats(gemm) - round_up(gemm.k, kStep));
}

void pack_w4a8(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  if (!takes_tiles(gemm, expert)) return kVectorParts.pack_w4a8(gemm, expert, tile, packed);
  pack_tile_rows(gemm, expert, kVectorParts.w4a8_tile_tokens, tile, packed + wider_rows(gemm, expert));
}

void w4a8_gemm(const W4A8Gemm& gemm, const GemmShare& share) {
  if (!takes_tiles(gemm, share.expert)) return kVectorParts.w4a8_gemm(gemm, share);
  __atomic_fetch_add(&g_shares, 1, __ATOMIC_RELAXED);
  GemmShare of_tiles = share;
  of_tiles.packed += wider_rows(gemm, share.expert);
  tile_gemm_share<HardwareTiles>(gemm, of_tiles);
}

constexpr IsaParts amx_parts() {
  IsaParts parts = kVectorParts;
  parts.pack_w4a8 = Counted<pack_w4a8>::run;
  parts.w4a8_gemm = Counted<w4a8_gemm>::run;
  return parts;
}

}  // namespace

constinit const IsaParts kAmxParts = amx_parts();
constinit const TileCounts kAmxTileCounts{num_shares, kTileRowsExact, kTileRowsVllm};

}  // namespace quadrille::kernels::cpu
