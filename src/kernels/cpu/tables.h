// SPDX-License-Identifier: Apache-2.0
// The CPU tables, one an instruction set; all give the same bits (the CPU order of docs/numerics.md).
#pragma once

#include "kernels/api/table.h"

namespace quadrille::kernels::cpu {

extern const KernelTable kGenericTable, kAvx2Table, kAvx512Table, kAmxTable;

}  // namespace quadrille::kernels::cpu
