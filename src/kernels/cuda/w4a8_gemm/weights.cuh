// SPDX-License-Identifier: Apache-2.0
// One record of weights from shared memory: sixteen A registers (four k32 steps) and the scales of the thread's two
// rows. The meaning of the bits is numerics/hopper_codes.h; here are the instructions.
#pragma once

#include <cstdint>

#include "kernels/cuda/w4a8_gemm/config.h"
#include "numerics/group_scale.h"
#include "numerics/hopper_codes.h"

namespace quadrille::kernels::cuda {

// Registers of one record for thread (w, g, t). scale[i]: exact: bf16 of row r0 in the low half, r0 + 8 in the high
// one.
template <int Groups>
struct RecordRegisters {
  uint32_t a[16];
  uint32_t scale[Groups];
};

// vllm: E4(s8 * q) of one scale code for q = 0..7 and q = -8..-1.
struct ScaleTable {
  uint32_t positive_low, positive_high, negative_low, negative_high;
};

__device__ __forceinline__ uint32_t table_word(uint8_t scale_code, int first_q) {
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word |= static_cast<uint32_t>(numerics::vllm_weight_code(scale_code, first_q + i)) << (8 * i);
  }
  return word;
}

// All 256 tables, [scale code] -> 16 bytes, once a CTA.
__device__ __forceinline__ void fill_scale_tables(uint4* tables, int thread, int threads) {
  for (int code = thread; code < 256; code += threads) {
    const uint8_t c = static_cast<uint8_t>(code);
    tables[code] = make_uint4(table_word(c, 0), table_word(c, 4), table_word(c, -8), table_word(c, -4));
  }
}

// Four weights of one row: `indices` has three-bit indices in its low four nibbles, `signs` the signs in bits 8b + 7.
__device__ __forceinline__ uint32_t look_up(const uint4& table, uint32_t indices, uint32_t signs) {
  // Selector 0xBA98 spreads the top bit of each byte over the byte.
  uint32_t negative;
  asm("prmt.b32 %0, %1, %1, 0xBA98;" : "=r"(negative) : "r"(signs));
  uint32_t below, above;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(below) : "r"(table.z), "r"(table.w), "r"(indices));
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(above) : "r"(table.x), "r"(table.y), "r"(indices));
  return (below & negative) | (above & ~negative);
}

__device__ __forceinline__ void decode_exact(uint32_t word, uint32_t* a) {
  a[0] = numerics::exact_a0(word);
  a[1] = numerics::exact_a1(word);
}

__device__ __forceinline__ void decode_vllm(uint32_t word, const uint4& table0, const uint4& table1, uint32_t* a) {
  const uint32_t indices = word & 0x77777777u;
  a[0] = look_up(table0, indices, word);
  a[1] = look_up(table1, indices >> 16, word << 4);
}

// record: the stage's record of this warpgroup. thread: 0..127 in the warpgroup.
template <typename Plan>
__device__ __forceinline__ void load_record(const uint8_t* record, const uint4* tables, int thread,
                                            RecordRegisters<Plan::kGroups>& out) {
  const int pair = thread / 32 * 8 + thread % 32 / 4;
  const uint8_t* scales = record + layout::kRecordCodeBytes;
  uint4 table[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 words = *reinterpret_cast<const uint4*>(record + half * 2048 + thread * 16);
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t* a = out.a + half * 8 + j * 2;
      const int step = half * 2 + j / 2;
      if constexpr (!Plan::kVllm) {
        decode_exact(word[j], a);
      } else {
        if (j % 2 == 0 && step % Plan::kStepsPerGroup == 0) {
          const int group = step / Plan::kStepsPerGroup;
          const uint16_t codes = *reinterpret_cast<const uint16_t*>(scales + (group * 32 + pair) * 2);
          table[0] = tables[codes & 0xff];
          table[1] = tables[codes >> 8];
        }
        decode_vllm(word[j], table[0], table[1], a);
      }
    }
  }
  if constexpr (!Plan::kVllm) {
#pragma unroll
    for (int group = 0; group < Plan::kGroups; ++group) {
      out.scale[group] = *reinterpret_cast<const uint32_t*>(scales + (group * 32 + pair) * 4);
    }
  }
}

__device__ __forceinline__ float low_scale(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_scale(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

}  // namespace quadrille::kernels::cuda
