// SPDX-License-Identifier: Apache-2.0
// quadrille_bench: speed of the CPU kernels and of the MoE layer at true shapes, as ratios to the ceilings of this
// machine in the same second; with targets and verdicts.
#include <fmt/format.h>

#include "bench/bench_options.h"
#include "bench/layer_bench.h"
#include "bench/other_products.h"
#include "bench/report.h"
#include "bench/w4a8_rows.h"
#include "kernels/api/registry.h"

namespace quadrille::bench {
namespace {

int run(const BenchOptions& options) {
  const auto table = kernels::select_table(options.table);
  if (!table) {
    fmt::print(stderr, "{}\n", table.error().message);
    return 1;
  }
  Report report(options.json);
  if (!report.writes()) {
    fmt::print(stderr, "cannot write '{}': give --json a file in a folder that exists\n", options.json);
    return 1;
  }
  if (options.layer) {
    bench_layer(options, **table, &report);
  } else {
    bench_w4a8(options, **table, &report);
    bench_other_products(options, **table, &report);
  }
  report.requirements();
  return 0;
}

}  // namespace
}  // namespace quadrille::bench

int main(int argc, char** argv) {
  quadrille::bench::BenchOptions options;
  if (!quadrille::bench::parse_options(argc, argv, &options)) {
    fmt::print(stderr, "{}", quadrille::bench::kBenchUsage);
    return 2;
  }
  return quadrille::bench::run(options);
}
