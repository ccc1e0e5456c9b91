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

// Integer digits for the rows below (avx512/vnni.cpp; every processor with AMX has VNNI).
bool pack_digits(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  return kAvx512VnniDigits.pack(gemm, expert, tile, packed);
}

void digits_tile(const W4A8Gemm& gemm, const GemmShare& share, int64_t slot, int64_t tokens) {
  kAvx512VnniDigits.tile(gemm, share, slot, tokens);
}

constexpr DigitParts kDigits{kTileRowsExact - 1, pack_digits, digits_tile};
constexpr IsaParts kVectorParts = parts_of<Simd>(nullptr, &kDigits);

bool takes_tiles(const W4A8Gemm& gemm, int64_t expert) {
  const int64_t rows = gemm.rows.offsets[expert + 1] - gemm.rows.offsets[expert];
  return rows >= (gemm.numerics == Numerics::kVllm ? kTileRowsVllm : kTileRowsExact);
}

void pack_w4a8(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  if (!takes_tiles(gemm, expert)) return kVectorParts.pack_w4a8(gemm, expert, tile, packed);
  pack_tile_rows(gemm, expert, kVectorParts.w4a8_tile_tokens, tile, kVectorParts.packed_w4a8_floats(gemm), packed);
}

void w4a8_gemm(const W4A8Gemm& gemm, const GemmShare& share) {
  if (!takes_tiles(gemm, share.expert)) return kVectorParts.w4a8_gemm(gemm, share);
  __atomic_fetch_add(&g_shares, 1, __ATOMIC_RELAXED);
  tile_gemm_share<HardwareTiles>(gemm, share, kVectorParts.packed_w4a8_floats(gemm));
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
