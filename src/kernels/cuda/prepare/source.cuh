// SPDX-License-Identifier: Apache-2.0
// Reading a checkpoint's matrices: which source row a prepared row is, and 64 rows x 512 k of codes into shared memory
// as words of two's complement nibbles. Used by prepare_w4.cu.
#pragma once

#include <cstdint>

#include "kernels/api/device_problems.h"
#include "layout/w4_hopper64.h"
#include "numerics/int4.h"

namespace quadrille::kernels::cuda {

inline constexpr int kPrepareThreads = 256;
inline constexpr int kChunkRecords = 4;
inline constexpr int kChunkK = kChunkRecords * layout::kRecordK;
inline constexpr int kChunkWords = kChunkK / 8;
// Words between rows in shared memory: 4 modulo 32, so that the eight rows of a quarter warp's piece meet eight banks
// each four apart, and 16-byte stores stay aligned.
inline constexpr int kChunkPitch = kChunkWords + 4;

// One row block of one expert, as its block of threads sees it.
struct RowBlock {
  layout::W4Hopper64 map;
  const void* codes[2];
  const void* scales[2];
  int64_t first_row;  // prepared
  int num_parts;
  uint32_t flip;  // of packed words: 0x88888888 for uint4b8

  // The address of a prepared row's data, `bytes` between rows of a part; null behind n.
  template <typename T>
  __device__ const T* row(const void* const (&parts)[2], int r, int64_t elements) const {
    const int64_t prepared = first_row + r;
    if (prepared >= map.n) return nullptr;
    if (num_parts == 1) return static_cast<const T*>(parts[0]) + prepared * elements;
    const layout::InterleavedRow place = layout::deinterleave_row(prepared);
    return static_cast<const T*>(place.part == 0 ? parts[0] : parts[1]) + place.row * elements;
  }
};

// Every load is issued before the first store, so that kCount loads of a thread are under way at once.
template <typename Value, int kCount, typename Load, typename Store>
__device__ __forceinline__ void copy_batch(int first, Load load, Store store) {
  Value values[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = load(first + i * kPrepareThreads);
#pragma unroll
  for (int i = 0; i < kCount; ++i) store(first + i * kPrepareThreads, values[i]);
}

// Rows of packed words that begin at multiples of 16 bytes: 16 threads a row, 16 bytes each.
__device__ __forceinline__ void load_packed16(const RowBlock& block, int64_t first_word, uint32_t* tile) {
  constexpr int kPieces = kChunkWords / 4;
  const int64_t words = block.map.k / 8;
  copy_batch<uint4, layout::kRecordRows * kPieces / kPrepareThreads>(
      static_cast<int>(threadIdx.x),
      [&](int i) {
        const int64_t word = first_word + i % kPieces * 4;
        const uint32_t* row = block.row<uint32_t>(block.codes, i / kPieces, words);
        if (row == nullptr || word >= words) return uint4{0, 0, 0, 0};
        const uint4 v = __ldg(reinterpret_cast<const uint4*>(row + word));
        return uint4{v.x ^ block.flip, v.y ^ block.flip, v.z ^ block.flip, v.w ^ block.flip};
      },
      [&](int i, const uint4& v) {
        *reinterpret_cast<uint4*>(tile + i / kPieces * kChunkPitch + i % kPieces * 4) = v;
      });
}

// Rows of packed words that begin anywhere: a warp reads 32 words, 128 bytes side by side.
__device__ __forceinline__ void load_packed4(const RowBlock& block, int64_t first_word, uint32_t* tile) {
  constexpr int kBatch = 4;
  const int64_t words = block.map.k / 8;
  for (int first = 0; first < layout::kRecordRows * kChunkWords; first += kBatch * kPrepareThreads) {
    copy_batch<uint32_t, kBatch>(
        first + static_cast<int>(threadIdx.x),
        [&](int i) {
          const int64_t word = first_word + i % kChunkWords;
          const uint32_t* row = block.row<uint32_t>(block.codes, i / kChunkWords, words);
          return row == nullptr || word >= words ? 0u : __ldg(row + word) ^ block.flip;
        },
        [&](int i, uint32_t v) { tile[i / kChunkWords * kChunkPitch + i % kChunkWords] = v; });
  }
}

// A word of nibbles from eight bytes; `bad` is set where a byte is no 4-bit code.
__device__ __forceinline__ uint32_t word_of_bytes(uint32_t low, uint32_t high, bool& bad) {
  bad = bad || !numerics::bytes_are_int4(low) || !numerics::bytes_are_int4(high);
  return numerics::int4_of_bytes(low) | numerics::int4_of_bytes(high) << 16;
}

// One byte a code, rows that begin at multiples of 16 bytes.
__device__ __forceinline__ void load_bytes16(const RowBlock& block, int64_t first_word, uint32_t* tile, bool& bad) {
  constexpr int kPieces = kChunkWords / 2;
  constexpr int kBatch = 4;
  const int64_t words = block.map.k / 8;
  for (int first = 0; first < layout::kRecordRows * kPieces; first += kBatch * kPrepareThreads) {
    copy_batch<uint4, kBatch>(
        first + static_cast<int>(threadIdx.x),
        [&](int i) {
          const int64_t word = first_word + i % kPieces * 2;
          const uint2* row = block.row<uint2>(block.codes, i / kPieces, words);
          if (row == nullptr || word >= words) return uint4{0, 0, 0, 0};
          return __ldg(reinterpret_cast<const uint4*>(row + word));
        },
        [&](int i, const uint4& v) {
          *reinterpret_cast<uint2*>(tile + i / kPieces * kChunkPitch + i % kPieces * 2) =
              uint2{word_of_bytes(v.x, v.y, bad), word_of_bytes(v.z, v.w, bad)};
        });
  }
}

// One byte a code, rows that begin at multiples of four bytes.
__device__ __forceinline__ void load_bytes4(const RowBlock& block, int64_t first_word, uint32_t* tile, bool& bad) {
  constexpr int kBatch = 4;
  const int64_t words = block.map.k / 8;
  for (int first = 0; first < layout::kRecordRows * kChunkWords; first += kBatch * kPrepareThreads) {
    copy_batch<uint2, kBatch>(
        first + static_cast<int>(threadIdx.x),
        [&](int i) {
          const int64_t word = first_word + i % kChunkWords;
          const uint32_t* row = block.row<uint32_t>(block.codes, i / kChunkWords, 2 * words);
          if (row == nullptr || word >= words) return uint2{0, 0};
          return uint2{__ldg(row + 2 * word), __ldg(row + 2 * word + 1)};
        },
        [&](int i, const uint2& v) {
          tile[i / kChunkWords * kChunkPitch + i % kChunkWords] = word_of_bytes(v.x, v.y, bad);
        });
  }
}

// Whether all rows of the codes begin at multiples of 16 bytes.
__device__ __forceinline__ bool rows_are_aligned(const RowBlock& block, int64_t row_bytes) {
  uint64_t bits = static_cast<uint64_t>(row_bytes) | reinterpret_cast<uint64_t>(block.codes[0]);
  if (block.num_parts == 2) bits |= reinterpret_cast<uint64_t>(block.codes[1]);
  return bits % 16 == 0;
}

}  // namespace quadrille::kernels::cuda
