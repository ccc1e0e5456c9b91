// SPDX-License-Identifier: Apache-2.0
// How fast 8-lane instructions decode 4-bit words at all: shift the nibble to the top, shift it back with its sign,
// convert, FMA with the token's value of that position. No machine without AVX-512 runs a one-token product faster than
// the smaller of this and its memory, so AVX2 rows are reported against it.
#include <immintrin.h>

#include "bench/probe_loops.h"

namespace quadrille::bench {
namespace {

constexpr int64_t kWords = 2048;  // 8 KiB: a quarter of the first cache
alignas(32) uint32_t g_words[kWords];
alignas(32) float g_tokens[64];

// Words and token values that no compiler knows.
bool fill() {
  uint32_t state = 12345;
  for (uint32_t& word : g_words) word = state = state * 1664525u + 1013904223u;
  for (float& token : g_tokens) token = 0.25f;
  return true;
}

// One 8-lane vector of words: nibble j meets the value of position j; even and odd positions have chains of their own.
template <int Nibble>
__attribute__((target("avx2,fma"), always_inline)) inline __m256 nibble_fma(__m256i words, __m256 token, __m256 sum) {
  const __m256i high = Nibble == 7 ? words : _mm256_slli_epi32(words, 28 - 4 * Nibble);
  return _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(high, 28)), token, sum);
}

// Vectors of words that are decoded side by side share the token's values.
template <int Vectors, bool FromMemory>
__attribute__((target("avx2,fma"))) double decode(int64_t turns) {
  static const bool filled = fill();
  static_cast<void>(filled);
  __m256 even[Vectors], odd[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) even[v] = odd[v] = _mm256_setzero_ps();
  const __m256 fixed = _mm256_broadcast_ss(g_tokens);
  int64_t vectors = 0;
  while (vectors < turns) {
    for (int64_t i = 0; i < kWords; i += 8 * Vectors) {
      const float* tokens = g_tokens + (i & 32);
      __asm__ volatile("" : : "r"(tokens) : "memory");
      const auto token = [&](int j) __attribute__((target("avx2,fma"), always_inline)) {
        return FromMemory ? _mm256_broadcast_ss(tokens + j) : fixed;
      };
      const __m256 t[8] = {token(0), token(1), token(2), token(3), token(4), token(5), token(6), token(7)};
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        const __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(g_words + i + 8 * v));
        even[v] = nibble_fma<0>(words, t[0], even[v]), odd[v] = nibble_fma<1>(words, t[1], odd[v]);
        even[v] = nibble_fma<2>(words, t[2], even[v]), odd[v] = nibble_fma<3>(words, t[3], odd[v]);
        even[v] = nibble_fma<4>(words, t[4], even[v]), odd[v] = nibble_fma<5>(words, t[5], odd[v]);
        even[v] = nibble_fma<6>(words, t[6], even[v]), odd[v] = nibble_fma<7>(words, t[7], odd[v]);
      }
      vectors += Vectors;
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) {
    keep(static_cast<uint64_t>(_mm256_cvtss_f32(_mm256_mul_ps(_mm256_add_ps(even[v], odd[v]), _mm256_setzero_ps()))));
  }
  return static_cast<double>(vectors) * 64;
}

constexpr DecodeLoop kDecodeLoops[] = {{"1 vector, values in registers", decode<1, false>},
                                       {"2 vectors, values in registers", decode<2, false>},
                                       {"4 vectors, values in registers", decode<4, false>},
                                       {"2 vectors, values from memory", decode<2, true>}};

}  // namespace

std::span<const DecodeLoop> decode_loops() {
  if (!dot_unit_runs(DotUnit::kAvx2Fma)) return {};
  return kDecodeLoops;
}

}  // namespace quadrille::bench
