// SPDX-License-Identifier: Apache-2.0
// The grouped W4A8 product of a table over numbers of rows an expert, at the shapes of Qwen3-30B-A3B.
#pragma once

#include "bench/bench_options.h"
#include "bench/report.h"
#include "kernels/api/table.h"

namespace quadrille::bench {

void bench_w4a8(const BenchOptions& options, const kernels::KernelTable& table, Report* report);

}  // namespace quadrille::bench
