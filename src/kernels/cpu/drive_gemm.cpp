// SPDX-License-Identifier: Apache-2.0
// Both grouped products: rows are packed into token tiles once, then output panels are shared out by cost.
#include "kernels/cpu/cpuid.h"
#include "kernels/cpu/drive.h"
#include "kernels/cpu/split.h"

namespace quadrille::kernels::cpu {
namespace {

// Panels of one expert that a part computes; cost 0 for an expert without rows.
struct PanelCost {
  int64_t of_weights = 0;  // of reading and decoding one panel's weights
  int64_t of_row = 0;      // of one row against one panel

  int64_t of(int64_t rows) const { return rows == 0 ? 0 : of_weights + rows * of_row; }
};

int64_t rows_of(const GroupedRows& rows, int64_t expert) {
  return rows.offsets[expert + 1] - rows.offsets[expert];
}

// body(expert, panel_begin, panel_end) for the share [low, high) of the total cost. A panel belongs to the share in
// which its cost begins.
template <typename Body>
void for_share(const GroupedRows& rows, int64_t num_panels, const PanelCost& cost, int64_t low, int64_t high,
               Body&& body) {
  int64_t before = 0;
  for (int64_t expert = 0; expert < rows.num_experts && before < high; ++expert) {
    const int64_t each = cost.of(rows_of(rows, expert));
    if (each == 0) continue;
    const auto first_from = [&](int64_t at) {
      const int64_t panel = at <= before ? 0 : (at - before + each - 1) / each;
      return panel < num_panels ? panel : num_panels;
    };
    const int64_t begin = first_from(low);
    const int64_t end = first_from(high);
    if (begin < end) body(expert, begin, end);
    before += each * num_panels;
  }
}

// Tiles are numbered through the experts; body(expert, tile).
template <typename Body>
void for_tiles(const GroupedRows& rows, int tile_tokens, int64_t begin, int64_t end, Body&& body) {
  int64_t before = 0;
  for (int64_t expert = 0; expert < rows.num_experts && before < end; ++expert) {
    const int64_t tiles = (rows_of(rows, expert) + tile_tokens - 1) / tile_tokens;
    const int64_t first = begin > before ? begin - before : 0;
    for (int64_t tile = first; tile < tiles && before + tile < end; ++tile) body(expert, tile);
    before += tiles;
  }
}

int64_t num_tiles(const GroupedRows& rows, int tile_tokens) {
  int64_t tiles = 0;
  for (int64_t e = 0; e < rows.num_experts; ++e) tiles += (rows_of(rows, e) + tile_tokens - 1) / tile_tokens;
  return tiles;
}

// Packs every tile, then computes every panel. `pack(expert, tile)`, `compute(share)`.
template <typename Pack, typename Compute>
void run_gemm(int tile_tokens, const GroupedRows& rows, int64_t n, int64_t packed_k, const PanelCost& cost,
              const KernelContext& context, const float* packed, Pack&& pack, Compute&& compute) {
  const int64_t panels = (n + kPanelRows - 1) / kPanelRows;
  int64_t total = 0;
  for (int64_t e = 0; e < rows.num_experts; ++e) total += panels * cost.of(rows_of(rows, e));
  if (total == 0) return;
  const int64_t tiles = num_tiles(rows, tile_tokens);
  run_ranges(context, tiles, rows.offsets[rows.num_experts] * packed_k / tiles,
             [&](int64_t begin, int64_t end) { for_tiles(rows, tile_tokens, begin, end, pack); });
  const int64_t num_parts = parts_for(context, total);
  float* scratch = context.scratch->take<float>(num_parts * kGemmScratchFloats);
  run_parts(context, num_parts, [&](int64_t part) {
    const auto bound = [&](int64_t i) {  // total * i / num_parts without overflow
      return total / num_parts * i + total % num_parts * i / num_parts;
    };
    for_share(rows, panels, cost, bound(part), bound(part + 1), [&](int64_t expert, int64_t begin, int64_t end) {
      compute(GemmShare{expert, begin, end, packed, scratch + part * kGemmScratchFloats});
    });
  });
}

// The digits form of a problem, or null: `exact` with one activation scale a row alone has it.
const DigitParts* digits_of(const IsaParts& parts, const W4A8Gemm& gemm) {
  if (gemm.numerics != Numerics::kExact || gemm.block_scale.data != nullptr) return nullptr;
  return parts.digits_vnni != nullptr && cpu_features().avx512vnni ? parts.digits_vnni : parts.digits;
}

// Packs tile `tile` as digits where the form takes it. is_digits [slots].
bool pack_digits(const DigitParts* digits, const W4A8Gemm& gemm, int tile_tokens, int64_t expert, int64_t tile,
                 float* packed, uint8_t* is_digits) {
  if (digits == nullptr) return false;
  const int64_t rows = rows_of(gemm.rows, expert);
  const int64_t slot = gemm.rows.offsets[expert] + tile_begin({rows, (rows + tile_tokens - 1) / tile_tokens}, tile);
  const bool taken = rows <= digits->most_rows && digits->pack(gemm, expert, tile, packed);
  is_digits[slot] = taken ? 1 : 0;
  return taken;
}

}  // namespace

void drive_w4a8_gemm(const IsaParts& parts, const W4A8Gemm& gemm, const KernelContext& context) {
  const ArenaScope scope(*context.scratch);
  const int64_t kp = (gemm.k + 31) / 32 * 32;
  const int64_t slots = gemm.rows.offsets[gemm.rows.num_experts];
  const int64_t floats = parts.packed_w4a8_floats != nullptr ? parts.packed_w4a8_floats(gemm) : kp;
  // A panel is two blocks of 16 rows: decoding costs about two operations a weight vector, the rounding of `vllm` ten,
  // looking it up (rows are packed as more than kp floats then) three, a row one.
  const int64_t decode = gemm.numerics == Numerics::kVllm ? (floats > kp ? 3 : 10) : 2;
  const PanelCost cost{2 * kp * decode, 2 * kp};
  float* packed = context.scratch->take<float>(slots * floats);
  const bool vllm_vnni = gemm.numerics == Numerics::kVllm && parts.vllm_vnni != nullptr && cpu_features().avx512vnni;
  const auto compute = vllm_vnni ? parts.vllm_vnni->gemm : parts.w4a8_gemm;
  const DigitParts* digits = digits_of(parts, gemm);
  uint8_t* is_digits = digits != nullptr ? context.scratch->take<uint8_t>(slots) : nullptr;
  run_gemm(
      parts.w4a8_tile_tokens, gemm.rows, gemm.n, kp, cost, context, packed,
      [&](int64_t expert, int64_t tile) {
        if (pack_digits(digits, gemm, parts.w4a8_tile_tokens, expert, tile, packed, is_digits)) return;
        parts.pack_w4a8(gemm, expert, tile, packed);
      },
      [&](GemmShare share) {
        share.is_digits = is_digits;
        share.digits = digits;
        compute(gemm, share);
      });
}

void drive_bf16_gemm(const IsaParts& parts, const Bf16Gemm& gemm, const KernelContext& context) {
  const ArenaScope scope(*context.scratch);
  const PanelCost cost{2 * gemm.k * 2, 2 * gemm.k};
  float* packed = context.scratch->take<float>(gemm.rows.offsets[gemm.rows.num_experts] * gemm.k);
  run_gemm(
      parts.bf16_tile_tokens, gemm.rows, gemm.n, gemm.k, cost, context, packed,
      [&](int64_t expert, int64_t tile) {
        // The rows of a single tile are read where they lie.
        if (rows_of(gemm.rows, expert) > parts.bf16_tile_tokens) parts.pack_bf16(gemm, expert, tile, packed);
      },
      [&](const GemmShare& share) { parts.bf16_gemm(gemm, share); });
}

}  // namespace quadrille::kernels::cpu
