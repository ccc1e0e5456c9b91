// SPDX-License-Identifier: Apache-2.0
// The vdpbf16 unit: its own W4A8 product, and the bodies over the AVX-512 vocabulary for everything else. Nothing
// outside anonymous namespaces but the one struct: no weak symbol of this unit may reach a machine without its
// instructions.
#include "kernels/cpu/avx512/simd.h"

#include "kernels/cpu/body/parts.h"
#include "kernels/cpu/vdpbf16/direct.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr IsaParts vdpbf16_parts() {
  IsaParts parts = parts_without_w4a8<Simd>();
  parts.w4a8_tile_tokens = kPairTileTokens;
  parts.pack_w4a8 = Counted<pack_pairs_tile>::run;
  parts.w4a8_gemm = Counted<pair_gemm_share>::run;
  return parts;
}

}  // namespace

constinit const IsaParts kVdpbf16Parts = vdpbf16_parts();

}  // namespace quadrille::kernels::cpu
