// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/cpuid.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

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

// A process asks Linux once before its threads may use tile data (arch_prctl(2)); 0, or errno of the refusal: an old
// kernel, or an alternate signal stack too small for the state.
int ask_for_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
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
    features.os_saves_tiles = (mask & 0x60000) == 0x60000;
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  features.avx2 = bit(b, 5);
  features.avx512f = bit(b, 16);
  features.avx512dq = bit(b, 17);
  features.avx512bw = bit(b, 30);
  features.avx512vl = bit(b, 31);
  features.avx512vnni = bit(c, 11);
  features.avx512vbmi = bit(c, 1);
  features.amx_bf16 = bit(d, 22);
  features.amx_tile = bit(d, 24);
  if (features.amx_tile && features.os_saves_tiles) features.tile_permission_error = ask_for_tiles();
  const uint32_t last_page = a;  // of leaf 7
  if (last_page >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) features.avx512bf16 = bit(a, 5);
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

std::string amx_reason_of(const CpuFeatures& f) {
  const std::string reason = missing("amx", {{f.avx512f, "AVX-512 F"},
                                             {f.avx512bw, "AVX-512 BW"},
                                             {f.avx512vl, "AVX-512 VL"},
                                             {f.avx512dq, "AVX-512 DQ"},
                                             {f.avx512vbmi, "AVX-512 VBMI"},
                                             {f.avx512vnni, "AVX-512 VNNI"},
                                             {f.fma, "FMA"},
                                             {f.amx_tile, "AMX-TILE"},
                                             {f.amx_bf16, "AMX-BF16"},
                                             {f.os_saves_zmm, "operating system support for zmm registers"},
                                             {f.os_saves_tiles, "operating system support for tile registers"}});
  if (!reason.empty() || f.tile_permission_error == 0) return reason;
  return std::string("the operating system refused this process the tile registers, which the amx kernels need: ") +
         std::strerror(f.tile_permission_error);
}

std::string amx_unavailable_reason() {
  return amx_reason_of(cpu_features());
}

std::string vdpbf16_unavailable_reason() {
  const CpuFeatures& f = cpu_features();
  const std::string reason = missing("vdpbf16", {{f.avx512bf16, "AVX512_BF16"}, {f.avx512vbmi, "AVX512_VBMI"}});
  return reason.empty() ? avx512_unavailable_reason() : reason;
}

}  // namespace quadrille::kernels::cpu
