// SPDX-License-Identifier: Apache-2.0
// Speed of the CPU GEMMs at true shapes, as ratios to the ceilings of this machine in the same minute: each round runs
// the probes and then the kernel; medians of the rounds are printed.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "core/arena.h"
#include "kernels/api/registry.h"

namespace quadrille::bench {
namespace {

using kernels::KernelContext;
using kernels::KernelTable;

struct Options {
  std::string table;  // empty: the best that runs
  int threads = 0;
  int rounds = 7;
  int64_t only_rows = 0;
  std::string only;
  Clock clock = wall_seconds;
};

// One product that is measured: the bytes it must read and the operations it must do.
struct Case {
  std::string name;
  int64_t rows = 0;  // an expert
  int64_t bytes = 0;
  int64_t flops = 0;
};

class Bench {
 public:
  explicit Bench(const Options& options, const KernelTable& table)
      : options_(options), table_(table), pool_(options.threads), ceilings_(pool_, options.clock) {}

  void header() {
    fmt::print("table {} ({}), {} threads, medians of {} interleaved rounds\n", table_.name,
               dot_unit_name(dot_unit_of(table_.name)), pool_.num_threads(), options_.rounds);
    fmt::print("{:<34} {:>5} {:>9} {:>7} {:>7} {:>9} {:>9} {:>7} {:>8}\n", "product", "rows", "ms", "GB/s", "% read",
               "GFLOP/s", "peak", "% dot", "% floor");
  }

  template <typename Run>
  void measure(const Case& c, Run&& run) {
    if (options_.only_rows != 0 && options_.only_rows != c.rows) return;
    if (c.name.find(options_.only) == std::string::npos) return;
    ceilings_.clear();
    std::vector<double> times;
    run(KernelContext{&pool_, &arena_});
    arena_.reset();
    for (int round = 0; round < options_.rounds; ++round) {
      ceilings_.probe_read();
      ceilings_.probe_dot(dot_unit_of(table_.name));
      const double begin = options_.clock();
      run(KernelContext{&pool_, &arena_});
      times.push_back(options_.clock() - begin);
      arena_.reset();
    }
    report(c, median(times));
  }

 private:
  void report(const Case& c, double seconds) {
    const double bytes = static_cast<double>(c.bytes) / seconds;
    const double flops = static_cast<double>(c.flops) / seconds;
    ceilings_.saw_read_rate(bytes);
    ceilings_.saw_dot_rate(flops);
    const double floor = std::max(static_cast<double>(c.bytes) / ceilings_.read_rate(),
                                  static_cast<double>(c.flops) / ceilings_.dot_rate());
    fmt::print("{:<34} {:>5} {:>9.3f} {:>7.1f} {:>7.1f} {:>9.1f} {:>9.1f} {:>7.1f} {:>8.1f}\n", c.name, c.rows,
               seconds * 1e3, bytes * 1e-9, 100 * bytes / ceilings_.read_rate(), flops * 1e-9,
               ceilings_.dot_rate() * 1e-9, 100 * flops / ceilings_.dot_rate(), 100 * floor / seconds);
  }

  Options options_;
  const KernelTable& table_;
  ThreadPool pool_;
  Ceilings ceilings_;
  Arena arena_;
};

// Experts of one shape with random weights; the codes of all experts lie in one piece.
class Experts {
 public:
  Experts(int64_t num_experts, int64_t n, int64_t k, int64_t group) : n_(n), k_(k), group_(group) {
    const int64_t words = n * k / 8;
    const int64_t groups = group == 0 ? 1 : k / group;
    std::mt19937_64 random(1);
    codes_.resize(static_cast<size_t>(num_experts * words / 2));
    for (uint64_t& pair : codes_) pair = random();
    scale_.resize(static_cast<size_t>(num_experts * n * groups), 0x3c00);
    scale8_.resize(scale_.size(), 0x38);
    channel_.resize(static_cast<size_t>(n), 0.01f);
    for (int64_t e = 0; e < num_experts; ++e) {
      matrices_.push_back({reinterpret_cast<const uint32_t*>(codes_.data()) + e * words, &scale_[e * n * groups],
                           &scale8_[e * n * groups], channel_.data()});
    }
  }

  int64_t bytes(kernels::Numerics numerics) const {
    const auto scale = static_cast<int64_t>(numerics == kernels::Numerics::kExact ? scale_.size() * 2 : scale_.size());
    return static_cast<int64_t>(codes_.size()) * 8 + scale;
  }

  void measure(Bench& bench, const KernelTable& table, const std::string& name, int64_t rows,
               kernels::Numerics numerics) const {
    const auto num_experts = static_cast<int64_t>(matrices_.size());
    const int64_t slots = rows * num_experts;
    std::vector<int64_t> offsets;
    for (int64_t e = 0; e <= num_experts; ++e) offsets.push_back(e * rows);
    std::vector<uint8_t> act(static_cast<size_t>(slots * k_));
    for (size_t i = 0; i < act.size(); ++i) act[i] = static_cast<uint8_t>(i * 37 % 112);
    const std::vector<float> act_scale(static_cast<size_t>(slots), 0.01f);
    std::vector<float> out(static_cast<size_t>(slots * n_));
    kernels::W4A8Gemm gemm;
    gemm.numerics = numerics;
    gemm.n = n_;
    gemm.k = k_;
    gemm.group_size = group_;
    gemm.rows = {num_experts, offsets.data(), nullptr};
    gemm.weights = matrices_.data();
    gemm.act = act.data();
    gemm.act_scale = act_scale.data();
    gemm.out = out.data();
    bench.measure({name, rows, bytes(numerics), 2 * slots * n_ * k_},
                  [&](const KernelContext& context) { table.w4a8_gemm(gemm, context); });
  }

 private:
  int64_t n_, k_, group_;
  std::vector<uint64_t> codes_;
  std::vector<uint16_t> scale_;
  std::vector<uint8_t> scale8_;
  std::vector<float> channel_;
  std::vector<kernels::W4Matrix> matrices_;
};

void measure_w4a8(Bench& bench, const KernelTable& table, const std::string& shape, int64_t n, int64_t k) {
  // 96 MB of weights where they are read once a row, and two experts where arithmetic bounds.
  const Experts many(64, n, k, 128), few(2, n, k, 128);
  for (const int64_t rows : {1, 2, 4, 6, 8, 12, 16, 64, 256}) {
    const Experts& experts = rows <= 8 ? many : few;
    experts.measure(bench, table, "w4a8 exact " + shape, rows, kernels::Numerics::kExact);
  }
  for (const int64_t rows : {1, 4, 64}) {
    const Experts& experts = rows <= 8 ? many : few;
    experts.measure(bench, table, "w4a8 vllm " + shape, rows, kernels::Numerics::kVllm);
  }
}

void measure_bf16(Bench& bench, const KernelTable& table, int64_t n, int64_t k) {
  constexpr int64_t kMatrices = 8;
  const std::vector<uint16_t> weights(static_cast<size_t>(kMatrices * n * k), 0x3c12);
  std::vector<const uint16_t*> pointers;
  for (int64_t e = 0; e < kMatrices; ++e) pointers.push_back(&weights[static_cast<size_t>(e * n * k)]);
  for (const int64_t rows : {1, 4, 16, 64}) {
    const int64_t used = rows <= 4 ? kMatrices : 1;
    std::vector<int64_t> offsets;
    for (int64_t e = 0; e <= used; ++e) offsets.push_back(e * rows);
    const std::vector<float> x(static_cast<size_t>(used * rows * k), 0.5f);
    std::vector<float> out(static_cast<size_t>(used * rows * n));
    kernels::Bf16Gemm gemm;
    gemm.rounding = kernels::Rounding::kBf16;
    gemm.n = n;
    gemm.k = k;
    gemm.rows = {used, offsets.data(), nullptr};
    gemm.weights = pointers.data();
    gemm.x = x.data();
    gemm.out = out.data();
    bench.measure({fmt::format("bf16 [{}, {}]", n, k), rows, used * n * k * 2, 2 * used * rows * n * k},
                  [&](const KernelContext& context) { table.bf16_gemm(gemm, context); });
  }
}

// One token against `context` keys: 32 query heads, 4 KV heads of 128, bf16 pages.
void measure_attention(Bench& bench, const KernelTable& table, int64_t context) {
  constexpr int64_t kHeads = 32, kKvHeads = 4, kHeadDim = 128, kPage = 64;
  const int64_t pages = (context + kPage - 1) / kPage;
  const std::vector<uint16_t> keys(static_cast<size_t>(pages * kPage * kKvHeads * kHeadDim), 0x3c12);
  const std::vector<float> q(kHeads * kHeadDim, 0.1f);
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
  bench.measure({fmt::format("attention, {} keys", context), 1, 4 * context * kKvHeads * kHeadDim,
                 4 * context * kHeads * kHeadDim},
                [&](const KernelContext& where) { table.attention(p, where); });
}

int run(const Options& options) {
  const auto table = kernels::select_table(options.table);
  if (!table) {
    fmt::print(stderr, "{}\n", table.error().message);
    return 1;
  }
  Bench bench(options, **table);
  bench.header();
  measure_w4a8(bench, **table, "w13 [1536, 2048] g128", 1536, 2048);
  measure_w4a8(bench, **table, "w2 [2048, 768] g128", 2048, 768);
  measure_bf16(bench, **table, 4096, 2048);
  for (const int64_t context : {256, 2048}) measure_attention(bench, **table, context);
  // A model that fits the caches: what is measured is the cost of a call.
  const Experts small(16, 256, 256, 32);
  for (const int64_t rows : {1, 4, 16}) {
    small.measure(bench, **table, "w4a8 exact small [256, 256] g32", rows, kernels::Numerics::kExact);
  }
  return 0;
}

constexpr const char* kUsage =
    "quadrille_bench [--kernels NAME] [--threads N] [--rounds N] [--rows N] [--only TEXT] [--clock wall|core]\n"
    "  --rows   only products with that many rows an expert\n"
    "  --only   only products whose name holds the text\n"
    "  --clock  core: the time this process had a core, for one thread on a busy machine\n";

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 >= argc) return false;
    const std::string value = argv[i + 1];
    if (name == "--kernels") {
      options.table = value;
    } else if (name == "--threads") {
      options.threads = std::atoi(value.c_str());
    } else if (name == "--rounds") {
      options.rounds = std::max(1, std::atoi(value.c_str()));
    } else if (name == "--rows") {
      options.only_rows = std::atoi(value.c_str());
    } else if (name == "--only") {
      options.only = value;
    } else if (name == "--clock" && (value == "core" || value == "wall")) {
      options.clock = value == "core" ? core_seconds : wall_seconds;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace quadrille::bench

int main(int argc, char** argv) {
  quadrille::bench::Options options;
  if (!quadrille::bench::parse(argc, argv, options)) {
    std::fputs(quadrille::bench::kUsage, stderr);
    return 2;
  }
  return quadrille::bench::run(options);
}
