// SPDX-License-Identifier: Apache-2.0
// Activations of the integer form of the `vllm` product. The values of a k32 step are 16-bit multiples of one unit
// where this is exact and where no partial sum of the step's two chains can round; other steps are marked and keep
// their fp32 values.
//
// A tile of T tokens is [128-block][T] of one record, then [128-block][T][4 steps][32] fp32 that only marked steps
// fill.
#pragma once

#include <cstring>

#include "kernels/cpu/body/w4a8_vllm_table.h"
#include "kernels/cpu/body/w4a8_weight.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int kBlockDepth = 128;  // four k32 steps
constexpr int kBlockSteps = 4;

// Of one token and 128 positions. value[2 * place + odd][half] serves one look-up of weights: bytes b = 0..3 of step
// 2 * half, then of step 2 * half + 1, position 8 * place + 2 * b + odd of the step.
struct VllmRecord {
  int16_t value[8][2][8];
  int32_t bias[kBlockSteps];  // - kWeightBias * (sum of the step's values)
  float unit[kBlockSteps];    // 0 where marked
  uint32_t marked;            // bit s: step s
  uint32_t unused[7];         // a whole number of half cache lines
};
static_assert(sizeof(VllmRecord) == 320);

constexpr int64_t kRecordFloats = sizeof(VllmRecord) / sizeof(float);

QD_HD int64_t num_blocks(int64_t k) {
  return (k + kBlockDepth - 1) / kBlockDepth;
}

// Floats of one packed token.
QD_HD int64_t vllm_row_floats(int64_t k) {
  return num_blocks(k) * (kRecordFloats + kBlockDepth);
}

// Sums of magnitudes, and the bits that occur, over one parity of a step.
struct HalfStep {
  uint32_t sum = 0;
  uint32_t bits = 0;

  // Partial sums are multiples of the lowest bit that occurs (times the unit of the weights): exact up to 2^24 of it.
  QD_HD bool is_exact() const { return uint64_t{sum} * kLargestWeight <= (uint64_t{bits & (~bits + 1)} << 24); }
};

QD_HD HalfStep half_of(const int32_t* values) {
  HalfStep half;
  for (int i = 0; i < 16; ++i) {
    const auto magnitude = static_cast<uint32_t>(values[i] < 0 ? -values[i] : values[i]);
    half.sum += magnitude;
    half.bits |= magnitude;
  }
  return half;
}

// Step `step` of a record from its values in units of 2^-9, even positions first. False: not exact, left zero.
QD_HD bool pack_step(const int32_t (&values)[kStep], int step, VllmRecord& record) {
  const HalfStep even = half_of(values), odd = half_of(values + 16);
  const uint32_t bits = even.bits | odd.bits;
  const int shift = bits == 0 ? 0 : __builtin_ctz(bits);
  const bool fits = bits < static_cast<uint32_t>(kNanUnits) && (bits >> shift) < 32768u;
  if (!fits || !even.is_exact() || !odd.is_exact()) return false;
  alignas(64) int16_t scaled[kStep];
  int32_t sum = 0;
  for (int i = 0; i < kStep; ++i) {
    scaled[i] = static_cast<int16_t>(values[i] >> shift);
    sum += values[i] >> shift;
  }
  for (int i = 0; i < 8; ++i) {  // (odd, place)
    std::memcpy(&record.value[i % 4 * 2 + i / 4][step / 2][step % 2 * 4], scaled + 4 * i, 4 * sizeof(int16_t));
  }
  record.bias[step] = -kWeightBias * sum;
  record.unit[step] = numerics::exp2_exact(shift - 9);
  return true;
}

// 128 positions of one token of which `count` exist; exact [4][32] in packed order.
template <class S>
QD_HD void pack_record(const uint8_t* codes, int64_t count, VllmRecord& record, float* exact) {
  alignas(64) uint8_t padded[kBlockDepth];
  const uint8_t* from = codes;
  if (count < kBlockDepth) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, codes, static_cast<size_t>(count));
    from = padded;
  }
  std::memset(&record, 0, sizeof(record));
  for (int step = 0; step < kBlockSteps; ++step, from += kStep) {
    alignas(64) int32_t values[kStep];
#pragma GCC unroll 32
    for (int i = 0; i < kStep; ++i) values[packed_position(i)] = kVllmTables.activation[from[i]];
    if (pack_step(values, step, record)) continue;
    record.marked |= 1u << step;
    alignas(64) float natural[kStep];
    for (int i = 0; i < kStep; i += S::kLanes) S::store(natural + i, S::load_e4m3(from + i));
    for (int i = 0; i < kStep; ++i) exact[step * kStep + packed_position(i)] = natural[i];
  }
}

// Where the records and the fp32 values of a tile of `tokens` lie.
struct VllmTile {
  float* base = nullptr;
  int64_t tokens = 0;
  int64_t blocks = 0;

  QD_HD VllmRecord* records(int64_t block) const {
    return reinterpret_cast<VllmRecord*>(base + block * tokens * kRecordFloats);
  }
  QD_HD float* exact(int64_t block) const { return base + (blocks * kRecordFloats + block * kBlockDepth) * tokens; }
};

QD_HD VllmTile vllm_tile(float* packed, const ExpertRows& rows, int64_t tile, int64_t k) {
  const int64_t first = rows.tile_slot(tile);
  return {packed + first * vllm_row_floats(k), rows.tile_slot(tile + 1) - first, num_blocks(k)};
}

template <class S>
void pack_vllm_tile(const W4A8Gemm& gemm, const ExpertRows& rows, int64_t tile, float* packed) {
  const VllmTile to = vllm_tile(packed, rows, tile, gemm.k);
  for (int64_t t = 0; t < to.tokens; ++t) {
    const uint8_t* codes = gemm.act + source_of(gemm.rows, rows.tile_slot(tile) + t) * gemm.k;
    for (int64_t b = 0; b < to.blocks; ++b) {
      const int64_t count = smaller(gemm.k - b * kBlockDepth, kBlockDepth);
      pack_record<S>(codes + b * kBlockDepth, count, to.records(b)[t], to.exact(b) + t * kBlockDepth);
    }
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
