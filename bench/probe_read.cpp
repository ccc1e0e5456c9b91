// SPDX-License-Identifier: Apache-2.0
// The read probe: loads of whole cache lines, or-ed together. Prefetches stand before the loads of a step: mixed
// between them they cost a quarter of the bandwidth (measured on Intel).
#include <immintrin.h>

#include <atomic>

#include "bench/probe_loops.h"
#include "kernels/cpu/cpuid.h"

namespace quadrille::bench {
namespace {

std::atomic<uint64_t> g_sink{0};

// Reads [p, p + bytes) with 64-byte loads, prefetching `ahead` bytes before the loads of a turn where ahead > 0.
__attribute__((target("avx512f"))) uint64_t read_avx512(const char* p, int64_t bytes, int64_t ahead) {
  __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = 0; i < bytes; i += kReadStep) {
    if (ahead > 0) {
      for (int64_t line = 0; line < kReadStep; line += 64) _mm_prefetch(p + i + line + ahead, _MM_HINT_T0);
    }
    for (int64_t line = 0; line < 8; ++line) {
      sum[line % 4] = _mm512_or_si512(sum[line % 4], _mm512_load_si512(p + i + line * 64));
    }
  }
  const __m512i all = _mm512_or_si512(_mm512_or_si512(sum[0], sum[1]), _mm512_or_si512(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(all)));
}

__attribute__((target("avx2"))) uint64_t read_avx2(const char* p, int64_t bytes, int64_t ahead) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i < bytes; i += kReadStep) {
    if (ahead > 0) {
      for (int64_t line = 0; line < kReadStep; line += 64) _mm_prefetch(p + i + line + ahead, _MM_HINT_T0);
    }
    for (int64_t half = 0; half < 16; ++half) {
      const auto* from = reinterpret_cast<const __m256i*>(p + i + half * 32);
      sum[half % 4] = _mm256_or_si256(sum[half % 4], _mm256_load_si256(from));
    }
  }
  const __m256i all = _mm256_or_si256(_mm256_or_si256(sum[0], sum[1]), _mm256_or_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) | _mm256_extract_epi64(all, 3));
}

uint64_t read_sse2(const char* p, int64_t bytes, int64_t ahead) {
  __m128i sum[4] = {};
  for (int64_t i = 0; i < bytes; i += kReadStep) {
    if (ahead > 0) {
      for (int64_t line = 0; line < kReadStep; line += 64) _mm_prefetch(p + i + line + ahead, _MM_HINT_T0);
    }
    for (int64_t part = 0; part < 32; ++part) {
      const auto* from = reinterpret_cast<const __m128i*>(p + i + part * 16);
      sum[part % 4] = _mm_or_si128(sum[part % 4], _mm_load_si128(from));
    }
  }
  const __m128i all = _mm_or_si128(_mm_or_si128(sum[0], sum[1]), _mm_or_si128(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(all));
}

void run_avx512(const char* p, int64_t bytes, int64_t ahead) {
  keep(read_avx512(p, bytes, ahead));
}
void run_avx2(const char* p, int64_t bytes, int64_t ahead) {
  keep(read_avx2(p, bytes, ahead));
}
void run_sse2(const char* p, int64_t bytes, int64_t ahead) {
  keep(read_sse2(p, bytes, ahead));
}

}  // namespace

void keep(uint64_t value) {
  g_sink.fetch_add(value, std::memory_order_relaxed);
}

ReadLoop read_loop() {
  const kernels::cpu::CpuFeatures& cpu = kernels::cpu::cpu_features();
  if (cpu.avx512f && cpu.os_saves_zmm) return run_avx512;
  return cpu.avx2 && cpu.os_saves_ymm ? run_avx2 : run_sse2;
}

}  // namespace quadrille::bench
