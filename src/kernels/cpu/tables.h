// SPDX-License-Identifier: Apache-2.0
// The CPU tables, one an instruction set; all but `vdpbf16` give the same bits (the CPU order of docs/numerics.md).
#pragma once

#include "kernels/api/table.h"

namespace quadrille::kernels::cpu {

extern const KernelTable kGenericTable, kAvx2Table, kAvx512Table, kAmxTable;
extern const KernelTable kVdpbf16Table;  // by name only: its W4A8 product has an order of its own

}  // namespace quadrille::kernels::cpu
