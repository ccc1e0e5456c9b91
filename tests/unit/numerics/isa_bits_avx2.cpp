// SPDX-License-Identifier: Apache-2.0
// The shared functions as the avx2 unit compiles them (flags in CMakeLists.txt).
#define QD_ISA_FUNCTION run_avx2
#include "isa_bits_body.h"
