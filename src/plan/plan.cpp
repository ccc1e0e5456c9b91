// SPDX-License-Identifier: Apache-2.0
// Adds up the parts of a step, layer by layer.
#include "plan/plan.h"

#include <algorithm>

namespace quadrille::plan {
namespace {

using layout::ModelShard;
using model::ModelConfig;

constexpr double kBf16Bytes = 2;

// The parts of a step on one rank.
class StepTimer {
 public:
  StepTimer(const PlanShape& shape, const ModelShard& shard, const PlanGrid& grid, const PlanRequest& request,
            bool is_prefill, const StepTokens& step)
      : shape_(shape),
        config_(shape.config),
        shard_(shard),
        grid_(grid),
        request_(request),
        gpu_(request.gpu),
        is_prefill_(is_prefill),
        step_(step),
        tokens_(static_cast<double>(request.load.group_tokens(step.all, grid.ep))),
        slice_(static_cast<double>(PlanLoad::slice_tokens(step.all, grid.ep))) {}

  double embedding() const { return rows_us(gpu_, 2 * tokens_ * hidden() * kBf16Bytes); }
  double attention(size_t layer) const;
  double router() const;
  double shared(size_t layer) const;
  double dense(size_t layer) const;
  double head() const {
    const auto rows = static_cast<double>(request_.load.group_tokens(step_.logits, grid_.ep));
    return rows_us(gpu_, tokens_ * hidden() * 4) +
           linear_us(gpu_, shard_.vocabulary.size(), config_.hidden_size, {false, 0}, rows);
  }

 private:
  double hidden() const { return static_cast<double>(config_.hidden_size); }
  double projections(const LayerForms& forms, double heads, double kv_heads) const;
  double latent_projections(const LayerForms& forms, double heads) const;
  AttentionWork work(int64_t window, double heads, double kv_heads) const;
  double mlp(const layout::MlpShard& mlp, const LinearForm& up, const LinearForm& down, double rows) const;

  const PlanShape& shape_;
  const ModelConfig& config_;
  const ModelShard& shard_;
  const PlanGrid& grid_;
  const PlanRequest& request_;
  const GpuRates& gpu_;
  bool is_prefill_;
  StepTokens step_;
  double tokens_;  // that this rank's attention sees
  double slice_;   // whose experts it asks for
};

// q, k and v as one product.
double StepTimer::projections(const LayerForms& forms, double heads, double kv_heads) const {
  const auto rows = static_cast<int64_t>((heads + 2 * kv_heads) * static_cast<double>(config_.head_dim));
  return linear_us(gpu_, rows, config_.hidden_size, forms.q, tokens_);
}

double StepTimer::latent_projections(const LayerForms& forms, double heads) const {
  const LatentAttention& a = *shape_.latent;
  const auto local = static_cast<int64_t>(heads);
  double us = linear_us(gpu_, a.kv_rank + a.rope_dim, config_.hidden_size, forms.k, tokens_);
  if (a.q_rank > 0) us += linear_us(gpu_, a.q_rank, config_.hidden_size, forms.q, tokens_);
  us += linear_us(gpu_, local * (a.nope_dim + a.rope_dim), a.q_rank > 0 ? a.q_rank : config_.hidden_size, forms.q,
                  tokens_);
  // Prefill expands the latent; decode multiplies queries and outputs by the same matrix, head by head.
  return us + linear_us(gpu_, local * (a.nope_dim + a.value_dim), a.kv_rank, {false, 0}, tokens_);
}

AttentionWork StepTimer::work(int64_t window, double heads, double kv_heads) const {
  const auto values = static_cast<double>(cache_values(shape_, static_cast<int64_t>(kv_heads)));
  const auto head_dim = static_cast<double>(config_.head_dim);
  double positions = 0;  // over the tokens of the step
  double dims = 2 * head_dim;
  if (!is_prefill_) {
    const int64_t seen = window > 0 ? std::min(window, request_.load.context) : request_.load.context;
    positions = tokens_ * static_cast<double>(seen);
    if (shape_.latent) dims = static_cast<double>(2 * shape_.latent->kv_rank + shape_.latent->rope_dim);
    return {positions * values * kBf16Bytes, positions * heads * dims * 2};
  }
  const double full = window > 0 ? std::min(static_cast<double>(window), tokens_) : tokens_;
  positions = full * (full + 1) / 2 + (tokens_ - full) * full;
  if (shape_.latent) {
    dims = static_cast<double>(shape_.latent->nope_dim + shape_.latent->rope_dim + shape_.latent->value_dim);
  }
  return {tokens_ * values * kBf16Bytes, positions * heads * dims * 2};
}

double StepTimer::attention(size_t layer) const {
  const layout::AttentionShard& a = shard_.layers[layer].attention;
  const LayerForms& forms = shape_.forms[layer];
  const auto heads = static_cast<double>(a.heads.heads.size()), kv_heads = static_cast<double>(a.heads.kv_heads.size());
  const auto head_dim = static_cast<double>(config_.head_dim);
  double us = shape_.latent ? latent_projections(forms, heads) : projections(forms, heads, kv_heads);
  us += attention_us(gpu_, work(config_.layers[layer].window, heads, kv_heads));
  us += linear_us(gpu_, config_.hidden_size, a.o.k(), forms.o, tokens_);
  // Norm and quantise; norm of heads, rotation and the cache; quantise the output; residual and norm.
  us += rows_us(gpu_, tokens_ * hidden() * 5) + rows_us(gpu_, tokens_ * (heads + 2 * kv_heads) * head_dim * 4);
  return us + rows_us(gpu_, tokens_ * heads * head_dim * 3) + rows_us(gpu_, tokens_ * hidden() * 8);
}

double StepTimer::router() const {
  const auto experts = static_cast<double>(config_.router.num_experts);
  return rows_us(gpu_, (experts + slice_) * hidden() * kBf16Bytes) + rows_us(gpu_, slice_ * experts * 4);
}

double StepTimer::mlp(const layout::MlpShard& mlp, const LinearForm& up, const LinearForm& down, double rows) const {
  const auto columns = static_cast<double>(mlp.columns.size());
  return linear_us(gpu_, 2 * mlp.columns.size(), config_.hidden_size, up, rows) +
         linear_us(gpu_, config_.hidden_size, mlp.down.k(), down, rows) + rows_us(gpu_, rows * hidden() * 3) +
         rows_us(gpu_, rows * columns * 3);
}

double StepTimer::shared(size_t layer) const {
  if (config_.shared_width == 0) return 0;
  const LayerForms& forms = shape_.forms[layer];
  return mlp(shard_.layers[layer].shared, forms.shared_up, forms.shared_down, slice_);
}

double StepTimer::dense(size_t layer) const {
  const LayerForms& forms = shape_.forms[layer];
  return mlp(shard_.layers[layer].dense, forms.dense_up, forms.dense_down, tokens_);
}

// The routed experts of a rank, the busiest of its grid.
ExpertWork expert_work(const PlanShape& shape, const ModelShard& shard, size_t layer, const PlanGrid& grid,
                       int64_t tokens) {
  const ModelConfig& config = shape.config;
  const layout::MlpShard& mlp = shard.layers[layer].experts;
  const RankLoad load = rank_load(config.router, grid.ep, tokens);
  ExpertWork work;
  work.hidden = config.hidden_size;
  work.columns = mlp.columns.size();
  work.down_k = mlp.down.k();
  work.experts = static_cast<double>(experts_here(config.router.num_experts, grid, 0));
  work.up = shape.forms[layer].experts_up;
  work.down = shape.forms[layer].experts_down;
  work.routing = UniformRouting::of(config.router, static_cast<double>(tokens) * load.imbalance());
  work.choice_rows = load.busiest;
  work.tokens = static_cast<double>(PlanLoad::slice_tokens(tokens, grid.ep));
  return work;
}

size_t first_moe_layer(const ModelConfig& config) {
  const auto at = std::find_if(config.layers.begin(), config.layers.end(), [](const auto& l) { return l.is_moe; });
  return static_cast<size_t>(at - config.layers.begin());
}

void add_layers(const PlanShape& shape, const StepTimer& timer, double experts_us, StepPlan* plan) {
  for (size_t l = 0; l < shape.config.layers.size(); ++l) {
    plan->attention += timer.attention(l);
    if (!shape.config.layers[l].is_moe) {
      plan->dense += timer.dense(l);
      continue;
    }
    plan->router += timer.router();
    plan->experts += experts_us;
    plan->shared += timer.shared(l);
  }
}

StepPlan plan_step(const PlanShape& shape, const ModelShard& shard, const PlanGrid& grid, const PlanRequest& request,
                   bool is_prefill) {
  const PlanLoad& load = request.load;
  StepPlan plan;
  plan.tokens = is_prefill ? load.prefill_tokens : load.decode_tokens;
  if (plan.tokens == 0) return plan;
  // Prefill: one prompt a group, and the logits of its last token.
  const int64_t prompts = load.attention == AttentionOver::kReplicated ? 1 : grid.ep;
  const StepTokens step{plan.tokens, is_prefill ? prompts : plan.tokens};
  const StepTimer timer(shape, shard, grid, request, is_prefill, step);
  double experts_us = 0;
  const size_t moe_layer = first_moe_layer(shape.config);
  if (moe_layer < shape.config.layers.size()) {
    const ExpertWork work = expert_work(shape, shard, moe_layer, grid, plan.tokens);
    experts_us = expert_time(request.gpu, work).total();
    plan.experts_hit = work.experts * work.routing.share_hit();
    plan.imbalance = rank_load(shape.config.router, grid.ep, plan.tokens).imbalance();
  }
  plan.embedding = timer.embedding();
  plan.head = timer.head();
  add_layers(shape, timer, experts_us, &plan);
  const Wires wires(grid, request.gpu, link_rates());
  plan.collectives = step_collectives(shape, wires, grid, load, step);
  for (const PlanCollective& c : plan.collectives) {
    const auto calls = static_cast<double>(c.calls);
    plan.collectives_us += calls * c.us;
    plan.sent += calls * c.sent;
    plan.outside += calls * c.outside;
  }
  return plan;
}

}  // namespace

double StepPlan::total() const {
  return embedding + attention + router + experts + shared + dense + head + collectives_us;
}

Result<GridPlan> plan_grid(const PlanShape& shape, const PlanGrid& grid, const PlanRequest& request) {
  GridPlan plan;
  plan.grid = grid;
  QD_TRY(plan.memory, largest_rank(shape, grid, request.load));
  plan.fits = plan.memory.total() <= request.gpu_memory;
  plan.decode = plan_step(shape, plan.memory.shard, grid, request, false);
  plan.prefill = plan_step(shape, plan.memory.shard, grid, request, true);
  return plan;
}

std::optional<size_t> best_grid(const std::vector<GridPlan>& plans) {
  std::optional<size_t> best;
  for (size_t i = 0; i < plans.size(); ++i) {
    if (plans[i].fits && (!best || plans[i].decode.total() < plans[*best].decode.total())) best = i;
  }
  return best;
}

std::optional<Smallest> smallest_that_fits(const PlanShape& shape, const PlanRequest& request, int gpus_per_host) {
  for (int gpus = 1; gpus <= layout::kMaxRanks; ++gpus) {
    std::optional<Smallest> best;
    for (const PlanGrid& grid : grids_of(gpus, gpus_per_host)) {
      const auto memory = largest_rank(shape, grid, request.load);
      if (!memory || memory->total() > request.gpu_memory) continue;
      if (!best || memory->total() < best->memory.total()) best = Smallest{grid, *memory};
    }
    if (best) return best;
  }
  return std::nullopt;
}

Result<LayerTime> plan_layer(const PlanShape& shape, const PlanGrid& grid, const GpuRates& gpu, int64_t tokens) {
  const size_t layer = first_moe_layer(shape.config);
  if (layer == shape.config.layers.size()) {
    return make_error(ErrorCode::kUnsupported, "{} has no MoE layer", shape.name);
  }
  QD_TRY_STATUS(check_grid(shape, grid));
  QD_TRY(const std::vector<ModelShard> shards, layout::plan_shards(shard_shape(shape), grid.tp));
  const auto slowest = std::max_element(shards.begin(), shards.end(), [layer](const auto& a, const auto& b) {
    return a.layers[layer].experts.down.k() < b.layers[layer].experts.down.k();
  });
  const int64_t all = tokens * grid.ep;
  const ExpertWork work = expert_work(shape, *slowest, layer, grid, all);
  LayerTime time;
  time.grid = grid;
  time.tokens = tokens;
  time.experts_hit = work.experts * work.routing.share_hit();
  time.time = expert_time(gpu, work);
  time.collectives = expert_collectives(shape, Wires(grid, gpu, link_rates()), grid, all, 1, 0);
  for (const PlanCollective& c : time.collectives) time.collectives_us += c.us;
  return time;
}

}  // namespace quadrille::plan
