// SPDX-License-Identifier: Apache-2.0
// The shared functions as the plain unit compiles them (flags in CMakeLists.txt).
#define QD_ISA_FUNCTION run_plain
#include "isa_bits_body.h"
