// SPDX-License-Identifier: Apache-2.0
// The two reference tables, slow and scalar: `ref` is the wide truth, `hopper` what a Hopper GPU computes, to the bit.
// The registry lists them.
#pragma once

#include "kernels/api/table.h"

namespace quadrille::kernels::ref {

extern const KernelTable kRefTable;
extern const KernelTable kHopperTable;

}  // namespace quadrille::kernels::ref
