// SPDX-License-Identifier: Apache-2.0
#include "bench/other_products.h"

#include <fmt/format.h>

#include <random>

#include "bench/random_experts.h"
#include "bench/rounds.h"

namespace quadrille::bench {
namespace {

using kernels::KernelContext;
using kernels::KernelTable;

class Products {
 public:
  Products(const BenchOptions& options, const KernelTable& table, Report* report)
      : options_(options), table_(table), report_(*report) {}

  void run(int threads) {
    Rounds rounds(threads, options_.rounds, options_.clock);
    report_.heading(fmt::format("{}, {} thread{}: other products", table_.name, threads, threads == 1 ? "" : "s"));
    dense(rounds, 4096, 2048);
    for (const int64_t context : {256, 2048}) attention(rounds, context);
    small(rounds, 16, 256, 256, 32);
  }

 private:
  template <typename Run>
  void measure(Rounds& rounds, const std::string& name, int64_t rows, const Work& work, Run&& run) {
    const DotUnit unit = dot_unit_of(table_.name);
    const Measured measured =
        rounds.measure(unit, false, 1, {{name, [&](int64_t, const KernelContext& context) { run(context); }}});
    const double seconds = measured.median_seconds(0);
    rounds.saw(work, seconds);
    const Limits limits = rounds.limits(false);
    report_.line({table_.name, name, fmt::format("rows {}", rows), rounds.threads(), seconds, work, limits,
                  floor_fraction(work, limits, seconds), 0});
  }
  bool wants(const std::string& name, int64_t rows) const { return options_.wants(name) && options_.wants(rows); }

  void dense(Rounds& rounds, int64_t n, int64_t k) {
    constexpr int64_t kMatrices = 8;
    const std::string name = fmt::format("bf16 [{}, {}]", n, k);
    if (!options_.wants(name)) return;
    std::mt19937 random(3);
    prepare::AlignedBuffer<uint16_t> weights(kMatrices * n * k);
    for (int64_t i = 0; i < weights.size(); ++i) {
      weights[i] = static_cast<uint16_t>(0x3c00 | (random() & 0x80ff));  // about 0.01, either sign
    }
    std::vector<const uint16_t*> pointers;
    for (int64_t e = 0; e < kMatrices; ++e) pointers.push_back(weights.data() + e * n * k);
    for (const int64_t rows : {1, 4, 16, 64}) {
      if (!options_.wants(rows)) continue;
      const int64_t used = rows <= 4 ? kMatrices : 1;
      std::vector<int64_t> offsets;
      for (int64_t e = 0; e <= used; ++e) offsets.push_back(e * rows);
      const std::vector<float> x = random_rows_bf16(used * rows, k, 4);
      std::vector<float> out(static_cast<size_t>(used * rows * n));
      kernels::Bf16Gemm gemm;
      gemm.rounding = kernels::Rounding::kBf16;
      gemm.n = n;
      gemm.k = k;
      gemm.rows = {used, offsets.data(), nullptr};
      gemm.weights = pointers.data();
      gemm.x = x.data();
      gemm.out = out.data();
      const auto values = static_cast<double>(used * n * k);
      measure(rounds, name, rows, {2 * values, 2 * values * static_cast<double>(rows), 0},
              [&](const KernelContext& context) { table_.bf16_gemm(gemm, context); });
    }
  }

  // One token against `context` keys: 32 query heads, 4 KV heads of 128, bf16 pages.
  void attention(Rounds& rounds, int64_t context) {
    constexpr int64_t kHeads = 32, kKvHeads = 4, kHeadDim = 128, kPage = 64;
    const std::string name = fmt::format("attention, {} keys", context);
    if (!wants(name, 1)) return;
    const int64_t pages = (context + kPage - 1) / kPage;
    std::vector<uint16_t> keys(static_cast<size_t>(pages * kPage * kKvHeads * kHeadDim));
    std::mt19937 random(5);
    for (uint16_t& key : keys) key = static_cast<uint16_t>(0x3e00 | (random() & 0x80ff));
    const std::vector<float> q = random_rows_bf16(1, kHeads * kHeadDim, 6);
    std::vector<float> out(kHeads * kHeadDim);
    std::vector<int32_t> page_table;
    for (int64_t i = 0; i < pages; ++i) page_table.push_back(static_cast<int32_t>(i));
    const auto position = static_cast<int32_t>(context - 1);
    const int32_t sequence = 0;
    kernels::Attention p;
    p.num_tokens = 1;
    p.num_heads = kHeads;
    p.num_kv_heads = kKvHeads;
    p.head_dim = kHeadDim;
    p.scale = 0.1f;
    p.q_stride = kHeads * kHeadDim;
    p.q = q.data();
    p.position = &position;
    p.sequence = &sequence;
    p.page_table = page_table.data();
    p.page_table_stride = pages;
    p.keys = keys.data();
    p.values = keys.data();
    p.out = out.data();
    const auto values = static_cast<double>(context * kHeadDim);
    measure(rounds, name, 1, {4 * values * kKvHeads, 4 * values * kHeads, 0},
            [&](const KernelContext& where) { table_.attention(p, where); });
  }

  // A model that fits the caches: what is measured is the cost of a call.
  void small(Rounds& rounds, int64_t num_experts, int64_t n, int64_t k, int64_t group) {
    const std::string name = fmt::format("w4a8 exact small [{}, {}] g{}", n, k, group);
    if (!options_.wants(name)) return;
    const RandomExperts experts(num_experts, n, k, group, 7);
    for (const int64_t m : {1, 4, 16}) {
      if (!options_.wants(m)) continue;
      const RandomRows rows(num_experts * m, k, 8);
      std::vector<int64_t> offsets;
      for (int64_t e = 0; e <= num_experts; ++e) offsets.push_back(e * m);
      std::vector<float> out(static_cast<size_t>(num_experts * m * n));
      kernels::W4A8Gemm gemm;
      gemm.n = n;
      gemm.k = k;
      gemm.group_size = group;
      gemm.rows = {num_experts, offsets.data(), nullptr};
      gemm.weights = experts.matrices();
      gemm.act = rows.act.data();
      gemm.act_scale = rows.act_scale.data();
      gemm.out = out.data();
      const auto bytes = static_cast<double>(num_experts * experts.bytes_of_one(kernels::Numerics::kExact));
      measure(rounds, name, m, {bytes, static_cast<double>(2 * num_experts * m * n * k), 0},
              [&](const KernelContext& context) { table_.w4a8_gemm(gemm, context); });
    }
  }

  const BenchOptions& options_;
  const KernelTable& table_;
  Report& report_;
};

}  // namespace

void bench_other_products(const BenchOptions& options, const KernelTable& table, Report* report) {
  bool any = false;
  for (const char* name :
       {"bf16 [4096, 2048]", "attention, 256 keys", "attention, 2048 keys", "w4a8 exact small [256, 256] g32"}) {
    any = any || options.wants(std::string(name));
  }
  if (!any) return;
  Products products(options, table, report);
  for (const int threads : options.threads) products.run(threads);
}

}  // namespace quadrille::bench
