// SPDX-License-Identifier: Apache-2.0
// Where a layer's time goes: a copy of a kernel table whose functions take the time of those of the table.
#pragma once

#include <string>

#include "kernels/api/table.h"

namespace quadrille::bench {

// Times start at zero. One profile at a time: the calls are counted in one place of the process.
kernels::KernelTable start_profile(const kernels::KernelTable& table);
// A line a function: calls, microseconds a call, share of `total_seconds`; then what is left, outside of the table.
std::string profile_text(double total_seconds);

}  // namespace quadrille::bench
