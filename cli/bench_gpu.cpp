// SPDX-License-Identifier: Apache-2.0
// Steps are enqueued two at a time, as a server's would be: the host's work hides behind the GPU's.
#include "cli/bench_gpu.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <set>
#include <span>

#include "cli/signals.h"
#include "device/device.h"
#include "plan/known_shapes.h"

namespace quadrille::cli {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median_of(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Distinct experts of each MoE layer.
class ExpertCount : public model::StepObserver {
 public:
  void router(int64_t, const float*, const int32_t* ids, const float*, int64_t num_tokens, int64_t,
              int64_t top_k) override {
    const std::set<int32_t> hit(ids, ids + num_tokens * top_k);
    sum_ += static_cast<double>(hit.size());
    ++layers_;
  }
  double sum() const { return sum_; }
  double mean() const { return layers_ > 0 ? sum_ / layers_ : 0; }

 private:
  double sum_ = 0;
  int layers_ = 0;
};

// `batch` sequences side by side, each in its own pages.
class Sequences {
 public:
  Sequences(model::DeviceModel& model, int64_t batch, int64_t longest, uint64_t seed)
      : model_(model),
        stride_((longest + model::kPagePositions - 1) / model::kPagePositions),
        random_(seed),
        pages_(static_cast<size_t>(batch * stride_)) {
    std::iota(pages_.begin(), pages_.end(), 0);
  }

  // Tokens [begin, begin + count) of `sequences` sequences from `first` on; logits of the last of each, or of none.
  void build(int64_t first, int64_t sequences, int64_t begin, int64_t count, bool wants_logits) {
    std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(model_.vocab_size() - 1));
    ids_.clear();
    positions_.clear();
    rows_of_tokens_.clear();
    logit_rows_.clear();
    for (int64_t s = first; s < first + sequences; ++s) {
      for (int64_t i = 0; i < count; ++i) {
        ids_.push_back(any(random_));
        positions_.push_back(static_cast<int32_t>(begin + i));
        rows_of_tokens_.push_back(static_cast<int32_t>(s));
      }
      if (wants_logits) logit_rows_.push_back(static_cast<int32_t>(ids_.size() - 1));
    }
  }
  model::Step step() const {
    return {.ids = ids_,
            .positions = positions_,
            .sequences = rows_of_tokens_,
            .page_table = pages_,
            .page_table_stride = stride_,
            .logit_rows = logit_rows_};
  }
  Status run() {
    QD_TRY_STATUS(model_.enqueue(step(), {}, {}));
    const auto tokens = model_.collect();
    return tokens ? Status() : Status(tokens.error());
  }

 private:
  model::DeviceModel& model_;
  int64_t stride_;
  std::mt19937_64 random_;
  std::vector<int32_t> pages_, ids_, positions_, rows_of_tokens_, logit_rows_;
};

// Bytes of the step's weights, of which `experts` of all layers together are read, and of its keys and values.
double bytes_of(const model::DeviceModel& model, double experts, const GpuBenchRow& row) {
  const model::MemoryUse memory = model.memory();
  const model::ModelConfig& config = model.config();
  const auto layers = static_cast<double>(std::max<int64_t>(config.num_moe_layers(), 1));
  const double per_layer = static_cast<double>(memory.expert_bytes) / layers;
  const double one = config.router.num_experts > 0 ? per_layer / static_cast<double>(config.router.num_experts) : 0;
  const double chosen = one * static_cast<double>(config.router.top_k) * layers;
  const double rest = static_cast<double>(memory.bytes_read_per_token) - chosen;
  return rest + experts * one + static_cast<double>(row.batch) * plan::kv_bytes_read(config, row.context, 2);
}

class Bench {
 public:
  Bench(model::DeviceModel& model, const GpuBenchPlan& plan, const GpuCeilings& ceilings)
      : model_(model), plan_(plan), ceilings_(ceilings) {}

  Result<GpuBenchRow> decode(int64_t batch) {
    Sequences sequences(model_, batch, plan_.context + plan_.decode_tokens * (plan_.rounds + 1), plan_.seed);
    QD_TRY_STATUS(fill(sequences, batch));
    GpuBenchRow row;
    row.name = "decode";
    row.batch = row.tokens = batch;
    row.context = plan_.context + plan_.decode_tokens * (plan_.rounds + 1) / 2;
    int64_t position = plan_.context;
    for (int64_t round = 0; round <= plan_.rounds; ++round) {
      if (interrupted()) return interrupted_error("bench");
      const auto start = Clock::now();
      for (int64_t i = 0; i < plan_.decode_tokens; ++i) {
        sequences.build(0, batch, position++, 1, true);
        QD_TRY_STATUS(model_.enqueue(sequences.step(), {}, {}));
        if (i > 0) QD_TRY_STATUS(collect());
      }
      QD_TRY_STATUS(collect());
      if (round > 0) row.seconds.push_back(seconds_since(start) / static_cast<double>(plan_.decode_tokens));
    }
    sequences.build(0, batch, position - 1, 1, true);
    row.operations = static_cast<double>(batch) * plan::prefill_flops(model_.config(), 1);
    return finish(sequences, std::move(row));
  }

  Result<GpuBenchRow> prefill() {
    Sequences sequences(model_, 1, plan_.prefill_tokens, plan_.seed + 1);
    GpuBenchRow row;
    row.name = "prefill";
    row.tokens = plan_.prefill_tokens;
    for (int64_t round = 0; round <= plan_.rounds; ++round) {
      if (interrupted()) return interrupted_error("bench");
      sequences.build(0, 1, 0, plan_.prefill_tokens, true);
      const auto start = Clock::now();
      QD_TRY_STATUS(sequences.run());
      if (round > 0) row.seconds.push_back(seconds_since(start));
    }
    row.operations = plan::prefill_flops(model_.config(), plan_.prefill_tokens);
    return finish(sequences, std::move(row));
  }

 private:
  Status collect() {
    const auto tokens = model_.collect();
    return tokens ? Status() : Status(tokens.error());
  }

  // Every sequence's context, a few sequences a step.
  Status fill(Sequences& sequences, int64_t batch) {
    const int64_t at_once = std::max<int64_t>(1, model_.max_async_tokens() / plan_.context);
    const int64_t chunk = std::min(plan_.context, model_.max_async_tokens());
    for (int64_t first = 0; first < batch; first += at_once) {
      if (interrupted()) return interrupted_error("bench");
      for (int64_t begin = 0; begin < plan_.context; begin += chunk) {
        const int64_t count = std::min(chunk, plan_.context - begin);
        sequences.build(first, std::min(at_once, batch - first), begin, count, false);
        QD_TRY_STATUS(sequences.run());
      }
    }
    return {};
  }

  // The step that was built last once more, watched; then bytes and floor.
  Result<GpuBenchRow> finish(Sequences& sequences, GpuBenchRow row) {
    ExpertCount count;
    std::vector<float> logits(sequences.step().logit_rows.size() * static_cast<size_t>(model_.vocab_size()));
    model_.set_observer(&count);
    const Status watched = model_.run(sequences.step(), logits);
    model_.set_observer(nullptr);
    if (!watched) return watched.error();
    row.experts_hit = count.mean();
    row.bytes = bytes_of(model_, count.sum(), row);
    row.floor_seconds = std::max(row.bytes / ceilings_.read, row.operations / ceilings_.fp8);
    return row;
  }

  model::DeviceModel& model_;
  const GpuBenchPlan& plan_;
  const GpuCeilings& ceilings_;
};

}  // namespace

double GpuBenchRow::median_seconds() const {
  return median_of(seconds);
}

int64_t gpu_bench_longest(const GpuBenchPlan& plan) {
  const int64_t decoded = plan.context + plan.decode_tokens * (plan.rounds + 1);
  return std::max(decoded, plan.prefill_tokens);
}

int64_t gpu_bench_positions(const GpuBenchPlan& plan) {
  const int64_t decoded = plan.context + plan.decode_tokens * (plan.rounds + 1);
  const int64_t pages = (decoded + model::kPagePositions - 1) / model::kPagePositions;
  const int64_t largest = *std::max_element(plan.batches.begin(), plan.batches.end());
  return std::max(largest * pages * model::kPagePositions, plan.prefill_tokens);
}

Result<GpuBenchResult> measure_on_gpu(model::DeviceModel& model, int ordinal, const GpuBenchPlan& plan,
                                      const std::function<void(int64_t done, int64_t total)>& progress) {
  GpuBenchResult result;
  QD_TRY(result.ceilings, probe_gpu(ordinal));
  Bench bench(model, plan, result.ceilings);
  const auto total = static_cast<int64_t>(plan.batches.size()) + 1;
  for (const int64_t batch : plan.batches) {
    progress(static_cast<int64_t>(result.rows.size()), total);
    QD_TRY(GpuBenchRow row, bench.decode(batch));
    result.rows.push_back(std::move(row));
  }
  progress(static_cast<int64_t>(result.rows.size()), total);
  QD_TRY(GpuBenchRow row, bench.prefill());
  result.rows.push_back(std::move(row));
  return result;
}

}  // namespace quadrille::cli
