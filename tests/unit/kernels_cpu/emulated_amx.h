// SPDX-License-Identifier: Apache-2.0
// The W4A8 product of the amx unit over emulated tiles, as parts that the driver can run, and what the emulation saw.
#pragma once

#include "kernels/cpu/isa_parts.h"

namespace quadrille::kernels::cpu {

struct EmulatedAmx {
  IsaParts parts;  // the W4A8 product alone; every expert runs on tiles, whatever its number of rows
  uint64_t (*num_dots)();
  uint64_t (*num_misuses)();
  uint64_t (*num_subnormals)();
};

extern const EmulatedAmx kEmulatedAmx;

}  // namespace quadrille::kernels::cpu
