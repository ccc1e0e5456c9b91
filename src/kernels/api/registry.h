// SPDX-License-Identifier: Apache-2.0
// Which tables this build has, which this machine runs, and the forced choice by name.
#pragma once

#include <span>
#include <string_view>

#include "core/result.h"
#include "kernels/api/table.h"

namespace quadrille::kernels {

// All tables of this build, best first, those that are only picked by name last.
std::span<const KernelTable* const> all_tables();

// The table of that name; empty name: the best one that runs here. kInvalidArgument lists the names, kUnsupported says
// why the named one does not run on this machine.
Result<const KernelTable*> select_table(std::string_view name);

}  // namespace quadrille::kernels
