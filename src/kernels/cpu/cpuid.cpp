// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpuid.h"

#include <cpuid.h>

#include <cstdint>

namespace quadrille::kernels::cpu {
namespace {

bool bit(uint32_t word, int index) {
  return (word >> index & 1u) != 0;
}

uint64_t saved_state_mask() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

CpuFeatures read_features() {
  CpuFeatures features;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
  features.fma = bit(c, 12);
  features.f16c = bit(c, 29);
  const bool has_xgetbv = bit(c, 27);
  if (has_xgetbv) {
    const uint64_t mask = saved_state_mask();
    features.os_saves_ymm = (mask & 0x6) == 0x6;
    features.os_saves_zmm = (mask & 0xe6) == 0xe6;
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  features.avx2 = bit(b, 5);
  features.avx512f = bit(b, 16);
  features.avx512dq = bit(b, 17);
  features.avx512bw = bit(b, 30);
  features.avx512vl = bit(b, 31);
  return features;
}

struct Need {
  bool present;
  const char* name;
};

template <int N>
std::string missing(const char* unit, const Need (&needs)[N]) {
  std::string names;
  for (const Need& need : needs) {
    if (!need.present) names += (names.empty() ? "" : ", ") + std::string(need.name);
  }
  return names.empty() ? "" : std::string("this machine lacks ") + names + ", which the " + unit + " kernels need";
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = read_features();
  return features;
}

std::string avx2_unavailable_reason() {
  const CpuFeatures& f = cpu_features();
  return missing("avx2", {{f.avx2, "AVX2"},
                          {f.fma, "FMA"},
                          {f.f16c, "F16C"},
                          {f.os_saves_ymm, "operating system support for ymm registers"}});
}

std::string avx512_unavailable_reason() {
  const CpuFeatures& f = cpu_features();
  return missing("avx512", {{f.avx512f, "AVX-512 F"},
                            {f.avx512bw, "AVX-512 BW"},
                            {f.avx512vl, "AVX-512 VL"},
                            {f.avx512dq, "AVX-512 DQ"},
                            {f.fma, "FMA"},
                            {f.os_saves_zmm, "operating system support for zmm registers"}});
}

}  // namespace quadrille::kernels::cpu
