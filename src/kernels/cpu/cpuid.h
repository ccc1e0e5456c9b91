// SPDX-License-Identifier: Apache-2.0
// What this processor and this operating system can run, asked once with cpuid and xgetbv.
#pragma once

#include <string>

namespace quadrille::kernels::cpu {

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false;
  bool avx512vnni = false;
  bool os_saves_ymm = false, os_saves_zmm = false;  // the system keeps these registers between threads
  bool avx512vbmi = false, avx512bf16 = false;
  bool amx_tile = false, amx_bf16 = false, os_saves_tiles = false;
  int tile_permission_error = 0;  // errno of the system's refusal to let this process use tiles
};

const CpuFeatures& cpu_features();

// Empty where the unit runs, else the reason: the instructions or the operating system support that is missing.
std::string avx2_unavailable_reason();
std::string avx512_unavailable_reason();
std::string amx_unavailable_reason();
// The same of given features.
std::string amx_reason_of(const CpuFeatures& features);
std::string vdpbf16_unavailable_reason();

}  // namespace quadrille::kernels::cpu
