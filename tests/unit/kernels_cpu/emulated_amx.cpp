// SPDX-License-Identifier: Apache-2.0
// Compiled with AVX-512 VBMI: the decoders are those of the amx unit, only the tiles are emulated.
#include "kernels/cpu/avx512/simd.h"

#include "emulated_amx.h"
#include "emulated_tiles.h"
#include "kernels/cpu/amx/w4a8_tiles.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kTileTokens = 7;

void pack(const W4A8Gemm& gemm, int64_t expert, int64_t tile, float* packed) {
  pack_tile_rows(gemm, expert, kTileTokens, tile, round_up(gemm.k, kStep), packed);
}

void gemm_share(const W4A8Gemm& gemm, const GemmShare& share) {
  tile_gemm_share<EmulatedTiles>(gemm, share, round_up(gemm.k, kStep));
}

uint64_t read(const uint64_t& counter) {
  return __atomic_load_n(&counter, __ATOMIC_RELAXED);
}

constexpr IsaParts emulated_parts() {
  IsaParts parts{};
  parts.w4a8_tile_tokens = kTileTokens;
  parts.pack_w4a8 = pack;
  parts.w4a8_gemm = gemm_share;
  return parts;
}

}  // namespace

constinit const EmulatedAmx kEmulatedAmx{emulated_parts(), [] { return read(g_emulated_dots); },
                                         [] { return read(g_misuses); }, [] { return read(g_subnormals); }};

}  // namespace quadrille::kernels::cpu
