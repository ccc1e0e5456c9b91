// SPDX-License-Identifier: Apache-2.0
// One body over all shared functions, compiled once per instruction set; each unit returns the bits it made.
#pragma once

#include <cstdint>

namespace quadrille::isa_bits {

inline constexpr int kResults = 28;  // values per input
// inputs[count], out[count * kResults]
void run_plain(const float* inputs, int count, uint32_t* out);
void run_avx2(const float* inputs, int count, uint32_t* out);
void run_avx512(const float* inputs, int count, uint32_t* out);

}  // namespace quadrille::isa_bits
