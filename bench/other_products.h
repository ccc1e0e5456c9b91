// SPDX-License-Identifier: Apache-2.0
// The other products of a decode step: dense bf16, attention of one token, and a W4A8 product so small that the call
// itself is measured. For information: no requirement.
#pragma once

#include "bench/bench_options.h"
#include "bench/report.h"
#include "kernels/api/table.h"

namespace quadrille::bench {

void bench_other_products(const BenchOptions& options, const kernels::KernelTable& table, Report* report);

}  // namespace quadrille::bench
