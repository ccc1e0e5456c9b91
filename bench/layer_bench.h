// SPDX-License-Identifier: Apache-2.0
// The whole MoE layer of Qwen3-30B-A3B: route, gather and quantise, GEMM1, SwiGLU, quantise, GEMM2, combine; `exact`
// and `vllm` in the same rounds, over numbers of tokens.
#pragma once

#include "bench/bench_options.h"
#include "bench/report.h"
#include "kernels/api/table.h"

namespace quadrille::bench {

void bench_layer(const BenchOptions& options, const kernels::KernelTable& table, Report* report);

}  // namespace quadrille::bench
