// SPDX-License-Identifier: Apache-2.0
// Dot peaks of vector units: independent chains in registers, enough to hide the latency, in several numbers, and one
// form that takes an operand from memory as GEMM kernels do. A spilled form is slower and does not count.
#include <immintrin.h>

#include "bench/probe_loops.h"
#include "kernels/cpu/cpuid.h"

namespace quadrille::bench {
namespace {

constexpr int kMostChains = 20;
// Read through volatile: different starts, or equal chains would be merged into one; operands that nobody knows.
const volatile float g_starts[kMostChains] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 1.1f,
                                              1.2f, 1.3f, 1.4f, 1.5f, 1.6f, 1.7f, 1.8f, 1.9f, 2.1f, 2.2f};
const volatile float g_half = 0.5f;

// Chains are arrays whose loops unroll whole, so that they stay in registers.
#define QD_PROBE_CHAINS _Pragma("GCC unroll 20") for (int j = 0; j < Chains; ++j)

template <int Chains>
__attribute__((target("avx512f"))) double fma512(int64_t turns) {
  __m512 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm512_set1_ps(g_starts[j]);
  const __m512 a = _mm512_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    QD_PROBE_CHAINS c[j] = _mm512_fmadd_ps(c[j], a, a);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm512_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 16 * 2;
}

template <int Chains>
__attribute__((target("avx512f"))) double fma512_memory(int64_t turns) {
  alignas(64) float tokens[Chains];
  for (float& t : tokens) t = g_half;
  const volatile float* from = tokens;
  __m512 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm512_set1_ps(g_starts[j]);
  const __m512 a = _mm512_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    QD_PROBE_CHAINS c[j] = _mm512_fmadd_ps(a, _mm512_set1_ps(from[j]), c[j]);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm512_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 16 * 2;
}

// Own assembly: clang 16 dies on the intrinsic behind a target attribute.
__attribute__((target("avx512f"), always_inline)) inline __m512 dot_pairs(__m512 sum, __m512 a, __m512 b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
__attribute__((target("avx512f"), always_inline)) inline __m512 dot_pairs_memory(__m512 sum, __m512 a, const float& b) {
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(b));
  return sum;
}

template <int Chains>
__attribute__((target("avx512f"))) double pairs512(int64_t turns) {
  __m512 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm512_set1_ps(g_starts[j]);
  const __m512 a = _mm512_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    QD_PROBE_CHAINS c[j] = dot_pairs(c[j], a, a);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm512_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 16 * 4;
}

template <int Chains>
__attribute__((target("avx512f"))) double pairs512_memory(int64_t turns) {
  alignas(64) float tokens[Chains];
  for (float& t : tokens) t = g_half;
  __m512 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm512_set1_ps(g_starts[j]);
  const __m512 a = _mm512_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    QD_PROBE_CHAINS c[j] = dot_pairs_memory(c[j], a, tokens[j]);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm512_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 16 * 4;
}

template <int Chains>
__attribute__((target("avx2,fma"))) double fma256(int64_t turns) {
  __m256 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm256_set1_ps(g_starts[j]);
  const __m256 a = _mm256_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    QD_PROBE_CHAINS c[j] = _mm256_fmadd_ps(c[j], a, a);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm256_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 8 * 2;
}

template <int Chains>
__attribute__((target("avx2,fma"))) double fma256_memory(int64_t turns) {
  alignas(32) float tokens[Chains][8];
  for (auto& row : tokens) {
    for (float& t : row) t = g_half;
  }
  const __m256* from = reinterpret_cast<const __m256*>(&tokens[0][0]);
  __m256 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm256_set1_ps(g_starts[j]);
  const __m256 a = _mm256_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    __asm__ volatile("" : : "r"(from) : "memory");  // else the operands move into registers
    QD_PROBE_CHAINS c[j] = _mm256_fmadd_ps(a, _mm256_load_ps(reinterpret_cast<const float*>(from + j)), c[j]);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm256_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 8 * 2;
}

template <int Chains>
double sum128(int64_t turns) {
  __m128 c[Chains];
  QD_PROBE_CHAINS c[j] = _mm_set1_ps(g_starts[j]);
  const __m128 a = _mm_set1_ps(g_half);
  for (int64_t i = 0; i < turns; ++i) {
    QD_PROBE_CHAINS c[j] = _mm_add_ps(_mm_mul_ps(c[j], a), a);
  }
  QD_PROBE_CHAINS keep(static_cast<uint64_t>(_mm_cvtss_f32(c[j])));
  return static_cast<double>(turns) * Chains * 4 * 2;
}

#undef QD_PROBE_CHAINS

constexpr DotLoop kAvx512Loops[] = {{"8 chains", fma512<8>},
                                    {"12 chains", fma512<12>},
                                    {"16 chains", fma512<16>},
                                    {"20 chains", fma512<20>},
                                    {"16 chains, operands from memory", fma512_memory<16>}};
constexpr DotLoop kPairLoops[] = {{"8 chains", pairs512<8>},
                                  {"12 chains", pairs512<12>},
                                  {"16 chains", pairs512<16>},
                                  {"20 chains", pairs512<20>},
                                  {"16 chains, operands from memory", pairs512_memory<16>}};
constexpr DotLoop kAvx2Loops[] = {{"8 chains", fma256<8>},
                                  {"10 chains", fma256<10>},
                                  {"12 chains", fma256<12>},
                                  {"12 chains, operands from memory", fma256_memory<12>}};
constexpr DotLoop kSse2Loops[] = {{"8 chains", sum128<8>}, {"10 chains", sum128<10>}, {"12 chains", sum128<12>}};

}  // namespace

bool dot_unit_runs(DotUnit unit) {
  const kernels::cpu::CpuFeatures& cpu = kernels::cpu::cpu_features();
  const bool wide = cpu.avx512f && cpu.os_saves_zmm;
  switch (unit) {
    case DotUnit::kSse2:
      return true;
    case DotUnit::kAvx2Fma:
      return cpu.avx2 && cpu.fma && cpu.os_saves_ymm;
    case DotUnit::kAvx512Fma:
      return wide;
    case DotUnit::kVdpbf16:
      return wide && cpu.avx512bf16;
    case DotUnit::kAmxBf16:
      return amx_bf16_runs();
  }
  return false;
}

std::span<const DotLoop> dot_loops(DotUnit unit) {
  if (!dot_unit_runs(unit)) return {};
  switch (unit) {
    case DotUnit::kSse2:
      return kSse2Loops;
    case DotUnit::kAvx2Fma:
      return kAvx2Loops;
    case DotUnit::kAvx512Fma:
      return kAvx512Loops;
    case DotUnit::kVdpbf16:
      return kPairLoops;
    case DotUnit::kAmxBf16:
      return tile_loops();
  }
  return {};
}

}  // namespace quadrille::bench
