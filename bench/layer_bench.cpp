// SPDX-License-Identifier: Apache-2.0
#include "bench/layer_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "bench/profiled_table.h"
#include "bench/random_experts.h"
#include "bench/rounds.h"
#include "core/check.h"
#include "moe/layer.h"
#include "numerics/bf16.h"

namespace quadrille::bench {
namespace {

using kernels::KernelContext;
using kernels::KernelTable;
using kernels::Numerics;

constexpr int64_t kHidden = 2048, kWidth = 768, kNumExperts = 128, kTopK = 8, kGroup = 128;
constexpr int64_t kTokens[] = {1, 4, 16, 64, 512};
// Tokens of different calls choose other experts, and the calls take the layers in turn: what one call leaves in the
// caches is of no use to the next.
constexpr int64_t kLayers = 2;
constexpr int64_t kTokenPool = 4096;

struct LayerWeights {
  explicit LayerWeights(uint64_t seed)
      : gate_up(kNumExperts, 2 * kWidth, kHidden, kGroup, seed), down(kNumExperts, kHidden, kWidth, kGroup, seed + 1) {}
  RandomExperts gate_up, down;
};

moe::Linear linear_of(const RandomExperts& experts) {
  return moe::W4Linear{experts.num_experts(), experts.n(), experts.k(), experts.group(), experts.matrices(), nullptr};
}

class LayerBench {
 public:
  LayerBench(const BenchOptions& options, const KernelTable& table, Report* report)
      : options_(options),
        table_(table),
        report_(*report),
        unit_(dot_unit_of(table.name)),
        x_(random_rows_bf16(kTokenPool, kHidden, 11)) {
    // All layers share a router, so that the two numerics, each on a layer of its own, take the same experts.
    for (const float value : random_rows_bf16(kNumExperts, kHidden, 12)) {
      router_.push_back(numerics::bf16_from_f32(value * 0.08f));  // logits with a deviation of 3.5
    }
    for (int64_t l = 0; l < kLayers; ++l)
      weights_.push_back(std::make_unique<LayerWeights>(20 + 2 * static_cast<uint64_t>(l)));
    for (const auto& weights : weights_) layers_.push_back(view(*weights));
  }

  void run() {
    for (const int threads : options_.threads) {
      Rounds rounds(threads, options_.rounds, options_.clock);
      report_.heading(fmt::format("MoE layer H {} I {}, {} experts, top {}, g{}: {} ({}), {} thread{}", kHidden, kWidth,
                                  kNumExperts, kTopK, kGroup, table_.name, dot_unit_name(unit_), threads,
                                  threads == 1 ? "" : "s"));
      for (const int64_t tokens : kTokens) {
        if (options_.wants(tokens)) measure(rounds, tokens);
      }
    }
    for (const int64_t tokens : kTokens) require(tokens);
  }

 private:
  struct Result {
    double fraction = 0;  // of the floor, exact
    double times_exact = 0;
    Bound bound = Bound::kRead;
  };

  moe::MoeLayer view(const LayerWeights& weights) const {
    moe::MoeLayer layer;
    layer.rule.num_experts = kNumExperts;
    layer.rule.top_k = kTopK;
    layer.rule.renormalise = true;
    layer.router_weight = router_.data();
    layer.experts.hidden = kHidden;
    layer.experts.width = kWidth;
    layer.experts.gate_up = linear_of(weights.gate_up);
    layer.experts.down = linear_of(weights.down);
    const Status legal = moe::check_layer(layer);
    QD_CHECK(legal.ok(), legal.ok() ? "" : legal.error().message);
    return layer;
  }

  // Call number `call` takes the next tokens of the pool.
  const float* tokens_of(int64_t call, int64_t tokens) const {
    return x_.data() + call % (kTokenPool / tokens) * tokens * kHidden;
  }

  // Routes and runs layer `index`; keeps the number of experts that were hit.
  void call(int64_t number, int64_t index, int64_t tokens, Numerics numerics, const KernelContext& context) {
    moe::Execution execution;
    execution.table = options_.profile ? &profiled_ : &table_;
    execution.kernels = context;
    execution.numerics = numerics;
    auto* logits = context.scratch->take<float>(tokens * kNumExperts);
    auto* ids = context.scratch->take<int32_t>(tokens * kTopK);
    auto* weights = context.scratch->take<float>(tokens * kTopK);
    auto* out = context.scratch->take<float>(tokens * kHidden);
    const float* x = tokens_of(number, tokens);
    const moe::MoeLayer& layer = layers_[static_cast<size_t>(index % kLayers)];
    const double begin = wall_seconds();
    moe::route(layer, x, tokens, execution, logits, ids, weights);
    const Status done = moe::run_layer(layer, x, tokens, {ids, weights}, execution, out);
    call_seconds_ += wall_seconds() - begin;
    QD_CHECK(done.ok(), done.ok() ? "" : done.error().message);
    bool hit[kNumExperts] = {};
    for (int64_t i = 0; i < tokens * kTopK; ++i) hit[ids[i]] = true;
    last_hit_ = std::count(hit, hit + kNumExperts, true);
  }

  Work work_of(int64_t tokens, double hit, Numerics numerics) const {
    const LayerWeights& weights = *weights_[0];
    const auto one = static_cast<double>(weights.gate_up.bytes_of_one(numerics) + weights.down.bytes_of_one(numerics));
    const double operations = 2.0 * static_cast<double>(tokens * kTopK) * 3 * kHidden * kWidth;
    return {hit * one, operations, 0};
  }

  void measure(Rounds& rounds, int64_t tokens) {
    const int64_t calls = tokens <= 4 ? 8 : (tokens <= 16 ? 4 : 1);
    std::vector<std::vector<double>> hit(2);
    const auto variant = [&](const char* name, size_t which, Numerics numerics) {
      return Variant{std::string("layer ") + name, [&, which, numerics](int64_t number, const KernelContext& context) {
                       call(number, number + static_cast<int64_t>(which), tokens, numerics, context);
                       if (number > 0) hit[which].push_back(static_cast<double>(last_hit_));
                     }};
    };
    const std::vector<Variant> variants = {variant("exact", 0, Numerics::kExact), variant("vllm", 1, Numerics::kVllm)};
    if (options_.profile) profiled_ = start_profile(table_), call_seconds_ = 0;
    const Measured measured = rounds.measure(unit_, false, calls, variants);
    if (options_.profile) fmt::print("{}", profile_text(call_seconds_));
    const Numerics numerics[] = {Numerics::kExact, Numerics::kVllm};
    for (size_t v = 0; v < 2; ++v) rounds.saw(work_of(tokens, median(hit[v]), numerics[v]), measured.median_seconds(v));
    const Limits limits = rounds.limits(false);
    for (size_t v = 0; v < 2; ++v) report(rounds, tokens, measured, limits, variants[v].name, hit[v], numerics[v], v);
  }

  void report(const Rounds& rounds, int64_t tokens, const Measured& measured, const Limits& limits,
              const std::string& name, const std::vector<double>& hit, Numerics numerics, size_t v) {
    // Every call has a floor of its own, by the experts that it hits.
    std::vector<double> fractions;
    for (size_t i = 0; i < hit.size(); ++i) {
      fractions.push_back(floor_fraction(work_of(tokens, hit[i], numerics), limits, measured.seconds[v][i]));
    }
    const Work work = work_of(tokens, median(hit), numerics);
    const double seconds = measured.median_seconds(v);
    const double times_exact = seconds / measured.median_seconds(0);
    report_.line({table_.name, name, fmt::format("T {}, {:.0f} experts hit", tokens, median(hit)), rounds.threads(),
                  seconds, work, limits, median(fractions), v == 0 ? 0 : times_exact});
    Result& result = results_[{rounds.threads(), tokens}];
    if (v == 0) {
      result.fraction = median(fractions), result.bound = bound_of(work, limits);
    } else {
      result.times_exact = times_exact;
    }
  }

  // Compute is judged on one thread, memory on all.
  void require(int64_t tokens) {
    const int most = *std::max_element(options_.threads.begin(), options_.threads.end());
    const int fewest = *std::min_element(options_.threads.begin(), options_.threads.end());
    const auto memory = results_.find({most, tokens});
    const auto compute = results_.find({fewest, tokens});
    if (memory == results_.end() || compute == results_.end()) return;
    const auto& judged = memory->second.bound == Bound::kDot ? *compute : *memory;
    const std::string where = fmt::format("layer, {} T {}, {} thread{}", table_.name, tokens, judged.first.first,
                                          judged.first.first == 1 ? "" : "s");
    if (const auto target = layer_target(unit_, tokens)) {
      report_.require({fmt::format("{}: % of the floor ({})", where, bound_name(judged.second.bound)), *target,
                       judged.second.fraction});
    }
    report_.require({where + ": time of vllm, % of exact", kMostVllmTime, judged.second.times_exact, true});
  }

  const BenchOptions& options_;
  const KernelTable& table_;
  Report& report_;
  DotUnit unit_;
  KernelTable profiled_ = table_;
  std::vector<float> x_;
  std::vector<uint16_t> router_;
  std::vector<std::unique_ptr<LayerWeights>> weights_;
  std::vector<moe::MoeLayer> layers_;
  std::map<std::pair<int, int64_t>, Result> results_;  // by threads and tokens
  int64_t last_hit_ = 0;
  double call_seconds_ = 0;
};

}  // namespace

void bench_layer(const BenchOptions& options, const KernelTable& table, Report* report) {
  LayerBench(options, table, report).run();
}

}  // namespace quadrille::bench
