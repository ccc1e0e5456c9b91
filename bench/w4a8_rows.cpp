// SPDX-License-Identifier: Apache-2.0
#include "bench/w4a8_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "bench/random_experts.h"
#include "bench/rounds.h"
#include "kernels/api/registry.h"

namespace quadrille::bench {
namespace {

using kernels::KernelContext;
using kernels::KernelTable;
using kernels::Numerics;

constexpr int64_t kRows[] = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128};
constexpr int64_t kExperts = 64;  // more than the caches hold
constexpr int64_t kSlots = 512;   // of a call, at most: enough experts for every thread, not too long
constexpr int64_t kGroup = 128;

// Calls with m rows an expert; each call takes the next experts, so that none is in a cache from the one before.
class Calls {
 public:
  Calls(const RandomExperts& experts, const RandomRows& rows, int64_t m)
      : experts_(experts),
        rows_(rows),
        m_(m),
        used_(std::min(kExperts, kSlots / m)),
        out_(static_cast<size_t>(m * used_ * experts.n())) {
    for (int64_t e = 0; e <= used_; ++e) offsets_.push_back(e * m);
  }

  Variant variant(const KernelTable& table, Numerics numerics, const std::string& name) {
    return {name, [this, &table, numerics](int64_t, const KernelContext& context) { run(table, numerics, context); }};
  }
  Work work(Numerics numerics, bool decodes) const {
    const auto weights = static_cast<double>(used_ * experts_.n() * experts_.k());
    return {static_cast<double>(used_ * experts_.bytes_of_one(numerics)), 2 * weights * static_cast<double>(m_),
            decodes ? weights : 0};
  }

 private:
  void run(const KernelTable& table, Numerics numerics, const KernelContext& context) {
    if (next_ + used_ > kExperts) next_ = 0;
    kernels::W4A8Gemm gemm;
    gemm.numerics = numerics;
    gemm.n = experts_.n();
    gemm.k = experts_.k();
    gemm.group_size = experts_.group();
    gemm.rows = {used_, offsets_.data(), nullptr};
    gemm.weights = experts_.matrices() + next_;
    gemm.act = rows_.act.data();
    gemm.act_scale = rows_.act_scale.data();
    gemm.out = out_.data();
    table.w4a8_gemm(gemm, context);
    next_ += used_;
  }

  const RandomExperts& experts_;
  const RandomRows& rows_;
  int64_t m_, used_, next_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<float> out_;
};

struct Point {
  int64_t rows = 0;
  double fraction = 0;  // of the floor
  Bound bound = Bound::kRead;
  Work work;
  Limits limits;
  double seconds = 0;
};
using Sweep = std::vector<Point>;

// One product of the model on all asked numbers of threads.
class ShapeBench {
 public:
  ShapeBench(const BenchOptions& options, const KernelTable& table, Report* report, const std::string& shape, int64_t n,
             int64_t k)
      : options_(options),
        table_(table),
        report_(*report),
        shape_(shape),
        experts_(kExperts, n, k, kGroup, 1),
        rows_(kSlots, k, 2) {
    // AMX, and a unit in an order of its own, are compared with the table that runs everywhere they do.
    const auto plain = kernels::select_table("avx512");
    if ((table.name == std::string("amx") || table.name == std::string("vdpbf16")) && plain) plain_ = *plain;
  }

  void run() {
    for (const int threads : options_.threads) {
      Rounds rounds(threads, options_.rounds, options_.clock);
      report_.heading(fmt::format("{} ({}), {} thread{}, medians of {} interleaved rounds", table_.name,
                                  dot_unit_name(unit_), threads, threads == 1 ? "" : "s", options_.rounds));
      for (const int64_t m : kRows) {
        if (options_.wants(m)) measure(rounds, m);
      }
    }
    require_all();
  }

 private:
  void measure(Rounds& rounds, int64_t m) {
    Calls calls(experts_, rows_, m);
    std::vector<Variant> variants;
    std::vector<Numerics> numerics;
    const auto add = [&](const KernelTable& table, Numerics which, const std::string& name) {
      if (!options_.wants(name)) return;
      variants.push_back(calls.variant(table, which, name));
      numerics.push_back(which);
    };
    add(table_, Numerics::kExact, "w4a8 exact " + shape_);
    add(table_, Numerics::kVllm, "w4a8 vllm " + shape_);
    if (plain_ != nullptr) add(*plain_, Numerics::kExact, "w4a8 exact avx512 " + shape_);
    if (variants.empty()) return;
    const bool decodes = unit_ == DotUnit::kAvx2Fma;
    Measured measured = rounds.measure(unit_, decodes, 1, variants);
    // Only what the table itself does raises its ceilings.
    for (size_t v = 0; v < variants.size(); ++v) {
      if (plain_ == nullptr || v < 2) rounds.saw(calls.work(numerics[v], decodes), measured.median_seconds(v));
    }
    measured.limits = rounds.limits(decodes);
    for (size_t v = 0; v < variants.size(); ++v) {
      const Work work = calls.work(numerics[v], decodes);
      const double seconds = measured.median_seconds(v), first = measured.median_seconds(0);
      const double fraction = floor_fraction(work, measured.limits, seconds);
      report_.line({table_.name, variants[v].name, fmt::format("rows {}", m), rounds.threads(), seconds, work,
                    measured.limits, fraction, v == 0 ? 0 : seconds / first});
      if (numerics[v] != Numerics::kExact || v != 0) continue;
      sweeps_[rounds.threads()].push_back(
          {m, fraction, bound_of(work, measured.limits), work, measured.limits, seconds});
    }
    if (plain_ != nullptr && variants.size() == 3) require_speed(rounds.threads(), m, measured);
  }

  // At least as fast as the plain table: slower in the median counts only where it is slower in three rounds of four.
  void require_speed(int threads, int64_t m, const Measured& measured) {
    if (table_.name != std::string("amx")) return;
    std::vector<double> ratios;
    for (size_t r = 0; r < measured.seconds[0].size(); ++r)
      ratios.push_back(measured.seconds[0][r] / measured.seconds[2][r]);
    std::sort(ratios.begin(), ratios.end());
    report_.require({fmt::format("{} rows {}, {} threads: time / time of avx512, lower quartile", name(), m, threads),
                     1, ratios[ratios.size() / 4], true});
  }

  std::string name() const { return fmt::format("{} {}", table_.name, shape_); }
  int most_threads() const { return *std::max_element(options_.threads.begin(), options_.threads.end()); }
  int fewest_threads() const { return *std::min_element(options_.threads.begin(), options_.threads.end()); }

  // Compute is judged on one thread, memory on all.
  const Point* judged(int64_t m) {
    const Point* memory = find(most_threads(), m);
    const Point* compute = find(fewest_threads(), m);
    if (memory == nullptr || compute == nullptr) return nullptr;
    return memory->bound == Bound::kDot ? compute : memory;
  }
  const Point* find(int threads, int64_t m) {
    for (const Point& point : sweeps_[threads]) {
      if (point.rows == m) return &point;
    }
    return nullptr;
  }

  void require_all() {
    for (const int64_t m : kRows) {
      const auto target = row_target(table_.name, m);
      if (target) require_target(m, *target);
    }
    if (!row_target(table_.name, 1) || unit_ == DotUnit::kAvx2Fma || !options_.rows.empty()) return;
    Sweep judged_sweep;
    for (const int64_t m : kRows) {
      if (const Point* point = judged(m)) judged_sweep.push_back(*point);
    }
    require_no_cliff("compute on one thread, memory on all", judged_sweep);
    for (const int threads : options_.threads) {
      require_no_cliff(fmt::format("{} thread{}", threads, threads == 1 ? "" : "s"), sweeps_[threads]);
    }
  }

  void require_target(int64_t m, const RowTarget& target) {
    using Of = RowTarget::Of;
    const Point* point = target.of == Of::kRead  ? find(most_threads(), m)
                         : target.of == Of::kDot ? find(fewest_threads(), m)
                                                 : judged(m);
    if (point == nullptr) return;
    const char* of = target.of == Of::kRead  ? "the read bandwidth, all threads"
                     : target.of == Of::kDot ? "the dot peak, one thread"
                                             : "the floor";
    const double reached = target.of == Of::kRead  ? point->work.bytes / point->seconds / point->limits.read
                           : target.of == Of::kDot ? point->work.operations / point->seconds / point->limits.dot
                                                   : point->fraction;
    report_.require({fmt::format("{} rows {}: % of {}", name(), m, of), target.fraction, reached});
  }

  void require_no_cliff(const std::string& where, const Sweep& sweep) {
    std::vector<double> fractions;
    for (const Point& point : sweep) fractions.push_back(point.fraction);
    if (fractions.size() < 2) return;
    const auto fall = largest_fall(fractions);
    std::string step = "no fall";
    if (fall) {
      step = fmt::format("rows {} to {}: {:.1f} to {:.1f} % of the floor", sweep[fall->before].rows,
                         sweep[fall->before + 1].rows, 100 * sweep[fall->before].fraction,
                         100 * sweep[fall->before + 1].fraction);
    }
    report_.require(
        {fmt::format("{} largest fall, {}: {}", name(), where, step), kMostFall, fall ? fall->share : 0, true});
  }

  const BenchOptions& options_;
  const KernelTable& table_;
  Report& report_;
  std::string shape_;
  RandomExperts experts_;
  RandomRows rows_;
  const KernelTable* plain_ = nullptr;
  DotUnit unit_ = dot_unit_of(table_.name);
  std::map<int, Sweep> sweeps_;  // by threads
};

}  // namespace

void bench_w4a8(const BenchOptions& options, const KernelTable& table, Report* report) {
  struct Shape {
    const char* name;
    int64_t n, k;
  };
  for (const Shape& shape : {Shape{"w13 [1536, 2048] g128", 1536, 2048}, Shape{"w2 [2048, 768] g128", 2048, 768}}) {
    const bool wanted =
        options.wants(std::string("w4a8 exact ") + shape.name) || options.wants(std::string("w4a8 vllm ") + shape.name);
    if (wanted) ShapeBench(options, table, report, shape.name, shape.n, shape.k).run();
  }
}

}  // namespace quadrille::bench
