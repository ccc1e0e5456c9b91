// SPDX-License-Identifier: Apache-2.0
// What this processor and this operating system can run, asked once with cpuid and xgetbv.
#pragma once

#include <string>

namespace quadrille::kernels::cpu {

struct CpuFeatures {
  bool avx2 = false, fma = false, f16c = false;
  bool avx512f = false, avx512bw = false, avx512vl = false, avx512dq = false;
  bool os_saves_ymm = false, os_saves_zmm = false;  // the system keeps these registers between threads
};

const CpuFeatures& cpu_features();

// Empty where the unit runs, else the reason: the instructions or the operating system support that is missing.
std::string avx2_unavailable_reason();
std::string avx512_unavailable_reason();

}  // namespace quadrille::kernels::cpu
