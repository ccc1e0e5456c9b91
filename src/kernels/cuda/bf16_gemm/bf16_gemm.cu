// SPDX-License-Identifier: Apache-2.0
// Checks a dense product, chooses its tile (no bit depends on that) and launches it.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/bf16_gemm/kernel.cuh"
#include "kernels/cuda/decoder_kernels.h"

namespace quadrille::kernels::cuda {
namespace {

bool on_16_bytes(const void* memory) {
  return reinterpret_cast<uintptr_t>(memory) % 16 == 0;
}

void check_problem(const DeviceBf16Gemm& p) {
  QD_CHECK(p.n >= 8 && p.n % 8 == 0 && p.k >= 8 && p.k % 8 == 0, "n and k of a multiple of 8");
  QD_CHECK(p.k <= INT32_MAX, "k below 2^31");
  QD_CHECK(on_16_bytes(p.weights) && on_16_bytes(p.x) && on_16_bytes(p.out), "rows on 16 bytes");
  QD_CHECK(p.expert_stride % 8 == 0 && p.x_pitch % 8 == 0 && p.x_pitch >= p.k, "rows on 16 bytes that hold k");
  QD_CHECK(p.num_experts >= 1 && p.source_divisor >= 1, "experts of the product");
  QD_CHECK(p.list.tiles != nullptr || (p.num_experts == 1 && p.source_row == nullptr), "a tile list for experts");
  const bool gated = p.output == GemmOutput::kActivated && p.activation.gated();
  QD_CHECK(!gated || p.n % 16 == 0, "gate and up of a multiple of 8 rows each");
  QD_CHECK(p.out_pitch >= (gated ? p.n / 2 : p.n), "a pitch that holds the row");
  QD_CHECK(p.out_pitch % (p.output == GemmOutput::kRowsF32 ? 4 : 8) == 0, "rows of out on 16 bytes");
}

template <typename Tile>
void launch(const DeviceBf16Gemm& p, device::Stream stream) {
  const bool gated = p.output == GemmOutput::kActivated && p.activation.gated();
  const int64_t tiles =
      p.list.tiles != nullptr ? p.list.max_tiles : (p.list.num_rows + Tile::kTokens - 1) / Tile::kTokens;
  const int64_t features = gated ? p.n / 2 : p.n;
  const int64_t per_tile = gated ? kTileSlots / 2 : kTileSlots;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>((features + per_tile - 1) / per_tile));
  QD_CHECK(tiles < (int64_t{1} << 31) && grid.y <= 65535, "a product within the limits of a grid");
  if (cudaFuncSetAttribute(dense_kernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes) !=
      cudaSuccess) {
    check_launch("bf16_gemm: shared memory");
  }
  launch_chained(dense_kernel<Tile>, grid, Tile::kThreads, Tile::kSharedBytes, native(stream), p);
  check_launch("bf16_gemm");
}

}  // namespace

int64_t choose_bf16_tile(int64_t num_experts, int64_t num_rows) {
  const int64_t of_expert = num_rows / std::max<int64_t>(num_experts, 1);
  if (num_rows <= DenseTile16::kTokens || of_expert < 12) return DenseTile16::kTokens;
  return num_rows <= DenseTile64::kTokens || of_expert < 80 ? DenseTile64::kTokens : DenseTile128::kTokens;
}

void bf16_gemm(const DeviceBf16Gemm& p, device::Stream stream) {
  check_problem(p);
  const bool listed = p.list.tiles != nullptr;
  if ((listed ? p.list.max_tiles : p.list.num_rows) == 0) return;
  const int64_t tokens = listed ? p.tile_tokens : choose_bf16_tile(1, p.list.num_rows);
  QD_CHECK(tokens >= 1 && tokens <= DenseTile128::kTokens, "tiles of at most 128 rows");
  if (tokens <= DenseTile16::kTokens) return launch<DenseTile16>(p, stream);
  if (tokens <= DenseTile64::kTokens) return launch<DenseTile64>(p, stream);
  launch<DenseTile128>(p, stream);
}

}  // namespace quadrille::kernels::cuda
