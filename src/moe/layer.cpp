// SPDX-License-Identifier: Apache-2.0
// The steps of the MoE layer in their order; each step is a function of the kernel table.
#include "moe/layer.h"

#include <cmath>
#include <numeric>

#include "core/check.h"
#include "moe/dispatch.h"
#include "moe/row_parallel.h"
#include "numerics/elementwise.h"
#include "numerics/silu.h"
#include "parallel/communicator.h"

namespace quadrille::moe {
namespace {

using kernels::Rounding;

// Tells the observer, if there is one.
class Watch {
 public:
  Watch(LayerObserver* observer, const Execution& execution, bool is_shared = false)
      : observer_(observer), rounds_(execution.rounding == Rounding::kBf16), is_shared_(is_shared) {}
  explicit operator bool() const { return observer_ != nullptr; }
  void values(const char* name, const float* x, int64_t rows, int64_t width, bool rounding_point) const {
    if (observer_ == nullptr) return;
    tell({name, rounds_ && rounding_point ? StageType::kBf16InF32 : StageType::kF32, {rows, width}, x});
  }
  void integers(const char* name, const std::vector<int32_t>& x, std::vector<int64_t> shape) const {
    if (observer_ != nullptr) tell({name, StageType::kI32, std::move(shape), x.data()});
  }
  void offsets(const char* name, const std::vector<int64_t>& x) const {
    if (observer_ != nullptr) tell({name, StageType::kI64, {static_cast<int64_t>(x.size())}, x.data()});
  }
  void quantised(const char* name, const char* scale_name, const LinearInput& input) const {
    if (observer_ == nullptr || input.act() == nullptr) return;
    tell({name, StageType::kE4M3, {input.num_rows(), input.k()}, input.act()});
    tell({scale_name, StageType::kF32, {input.num_rows(), 1}, input.act_scale()});
  }

 private:
  void tell(const Stage& stage) const { is_shared_ ? observer_->shared_stage(stage) : observer_->stage(stage); }

  LayerObserver* observer_;
  bool rounds_;
  bool is_shared_;
};

// GEMM1, activation, GEMM2 over grouped rows: out [slots, hidden]; with ranks the partial rows of this one, in fp32.
Status run_grouped(const GatedMlp& mlp, LinearInput* input, const kernels::GroupedRows& rows,
                   const Execution& execution, const Watch& watch, float* out) {
  Arena* scratch = execution.kernels.scratch;
  const int64_t num_slots = rows.offsets[rows.num_experts];
  const int64_t columns = linear_n(mlp.gate_up);
  float* gate_up = scratch->take<float>(num_slots * columns);
  apply_linear(mlp.gate_up, input, rows, OutputRounding::kNone, execution, gate_up);
  // `vllm` rounds gate and up to bf16 (the activation does it); `exact` keeps them in fp32.
  watch.values("gemm1_out", gate_up, num_slots, columns, execution.numerics == kernels::Numerics::kVllm);

  float* hidden = scratch->take<float>(num_slots * mlp.width);
  apply_activation(mlp.activation, gate_up, num_slots, mlp.width, execution, hidden);
  watch.values("act", hidden, num_slots, mlp.width, true);

  QD_TRY(LinearInput second, row_parallel_input(mlp.down, {hidden, num_slots, mlp.width, mlp.down_offset}, execution));
  const bool is_partial = execution.is_split();
  apply_linear(row_parallel_part(mlp.down, execution), &second, {rows.num_experts, rows.offsets, nullptr},
               is_partial ? OutputRounding::kNone : OutputRounding::kAsExecution, execution, out);
  watch.quantised("a2", "a2_scale", second);
  watch.values("gemm2_out", out, num_slots, mlp.hidden, !is_partial);
  return {};
}

Status run_grouped_mlp(const GatedMlp& mlp, LinearInput* input, const Execution& execution, const Watch& watch,
                       float* out) {
  const int64_t offsets[2] = {0, input->num_rows()};
  return run_grouped(mlp, input, {1, offsets, nullptr}, execution, watch, out);
}

// x' = rounded(w * x) for each of some routes: the router weight on the input.
const float* weigh_input(const MoeLayer& layer, const std::vector<int32_t>& routes, const float* x,
                         const float* weights, const Execution& execution) {
  const int64_t width = layer.experts.hidden;
  const auto num_rows = static_cast<int64_t>(routes.size());
  float* weighed = execution.kernels.scratch->take<float>(num_rows * width);
  const bool to_bf16 = execution.rounding == Rounding::kBf16;
  execution.kernels.pool->run(num_rows, [&](int64_t r) {
    const float weight = weights[routes[r]];
    const float* row = x + routes[r] / layer.rule.top_k * width;
    for (int64_t i = 0; i < width; ++i) weighed[r * width + i] = numerics::round_output(weight * row[i], to_bf16);
  });
  return weighed;
}

void watch_plan(const Watch& watch, const Plan& plan) {
  watch.offsets("expert_first_token_offset", plan.offsets);
  watch.integers("inv_permuted_idx", plan.slot_of_route, {plan.num_tokens, plan.top_k});
  watch.integers("permuted_idx", plan.route_of_slot, {plan.num_slots()});
}

// GEMM2 rows of the routed experts, and which of them a route has.
struct RoutedRows {
  const float* rows = nullptr;        // [.., hidden]
  std::vector<int32_t> row_of_route;  // [num_tokens * top_k]; -1: the route adds nothing
};

// Every expert is here. `input`: the tokens, which the shared expert reads too.
Result<RoutedRows> run_here(const MoeLayer& layer, LinearInput* input, const Routes& routes, const Execution& execution,
                            const Watch& watch) {
  const int64_t top_k = layer.rule.top_k, num_tokens = input->num_rows(), hidden = input->k();
  Plan plan;
  QD_TRY_STATUS(build_plan({routes.ids, static_cast<size_t>(num_tokens * top_k)}, num_tokens, top_k,
                           layer.rule.num_experts, &plan));
  watch_plan(watch, plan);
  if (layer.guard != nullptr) QD_TRY_STATUS(layer.guard->before_use(plan.offsets));
  LinearInput weighed(nullptr, plan.num_slots(), hidden);
  const bool weight_on_input = layer.rule.weight_on_input;
  if (weight_on_input) {
    weighed = LinearInput(weigh_input(layer, plan.route_of_slot, input->x(), routes.weights, execution),
                          plan.num_slots(), hidden);
  }
  LinearInput* first = weight_on_input ? &weighed : input;
  const kernels::GroupedRows rows{layer.rule.num_experts, plan.offsets.data(),
                                  weight_on_input ? nullptr : plan.token_of_slot.data()};
  float* gemm2 = execution.kernels.scratch->take<float>(plan.num_slots() * hidden);
  QD_TRY_STATUS(run_grouped(layer.experts, first, rows, execution, watch, gemm2));
  watch.quantised("a1", "a1_scale", *first);
  return RoutedRows{gemm2, std::move(plan.slot_of_route)};
}

// The experts are spread over ranks: rows go to them and come back.
Result<RoutedRows> run_spread(const MoeLayer& layer, LinearInput* input, const Routes& routes,
                              const Execution& execution, const Watch& watch) {
  const int64_t top_k = layer.rule.top_k, num_tokens = input->num_rows(), hidden = input->k();
  QD_CHECK(layer.expert_rank == execution.expert_ranks->rank(), "the layer holds the experts of this rank");
  SendPlan plan;
  QD_TRY_STATUS(plan_send({routes.ids, static_cast<size_t>(num_tokens * top_k)}, num_tokens, top_k, *layer.placement,
                          layer.expert_rank, &plan));
  LinearInput weighed(nullptr, num_tokens, hidden);
  if (layer.rule.weight_on_input) {
    std::vector<int32_t> all(static_cast<size_t>(num_tokens));  // a token has one route
    std::iota(all.begin(), all.end(), 0);
    weighed = LinearInput(weigh_input(layer, all, input->x(), routes.weights, execution), num_tokens, hidden);
  }
  const RowForm values = execution.rounding == Rounding::kBf16 ? RowForm::kBf16 : RowForm::kF32;
  const RowForm form = is_w4a8(layer.experts.gate_up) ? RowForm::kCodes : values;
  LinearInput* sent = layer.rule.weight_on_input ? &weighed : input;
  QD_TRY(ReceivedRows received, dispatch_rows(plan, sent, form, *layer.placement, execution));
  watch_plan(watch, received.plan);
  const kernels::GroupedRows rows{received.plan.num_experts(), received.plan.offsets.data(),
                                  received.row_of_slot.data()};
  float* gemm2 = execution.kernels.scratch->take<float>(received.plan.num_slots() * hidden);
  QD_TRY_STATUS(run_grouped(layer.experts, &received.input, rows, execution, watch, gemm2));
  watch.quantised("a1", "a1_scale", received.input);
  // Partial rows are not rounded: they travel as they are.
  QD_TRY(const float* returned,
         return_rows(plan, received, gemm2, hidden, execution.is_split() ? RowForm::kF32 : values, execution));
  return RoutedRows{returned, std::move(plan.place_of_route)};
}

struct SharedOutput {
  const float* rows = nullptr;  // [num_tokens, hidden]
  const float* gate = nullptr;  // [num_tokens]
};

Result<SharedOutput> run_shared(const MoeLayer& layer, LinearInput* input, const Execution& execution,
                                LayerObserver* observer) {
  if (!layer.shared) return SharedOutput{};
  const int64_t num_tokens = input->num_rows();
  float* rows = execution.kernels.scratch->take<float>(num_tokens * layer.shared->hidden);
  QD_TRY_STATUS(run_grouped_mlp(*layer.shared, input, execution, Watch(observer, execution, true), rows));
  if (layer.shared_gate_weight == nullptr) return SharedOutput{rows, nullptr};
  float* gate = execution.kernels.scratch->take<float>(num_tokens);
  execution.table->router_logits({num_tokens, 1, layer.shared->hidden, input->x(), layer.shared_gate_weight, gate},
                                 execution.kernels);
  for (int64_t t = 0; t < num_tokens; ++t) gate[t] = numerics::sigmoid(gate[t]);
  return SharedOutput{rows, gate};
}

Status check_linear(const Linear& linear, const char* name, int64_t n, int64_t k, int64_t num_experts) {
  const int64_t experts = std::visit([](const auto& l) { return l.num_experts; }, linear);
  if (linear_n(linear) != n || linear_k(linear) != k || experts != num_experts) {
    return make_error(ErrorCode::kInvalidArgument,
                      "layer: {}: expected {} matrices [{}, {}], found {} matrices [{}, {}]", name, num_experts, n, k,
                      experts, linear_n(linear), linear_k(linear));
  }
  if (const auto* w4 = std::get_if<W4Linear>(&linear)) {
    if (auto legal = kernels::check_w4a8_shape(n, k, w4->group_size); !legal) return legal.error().in(name);
  }
  return {};
}

Status check_placement(const MoeLayer& layer) {
  if (layer.placement == nullptr) return {};
  const Placement& placement = *layer.placement;
  if (placement.num_experts() == layer.rule.num_experts && layer.expert_rank >= 0 &&
      layer.expert_rank < placement.num_ranks()) {
    return {};
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "layer: rank {} of a placement of {} experts over {} ranks; expected {} experts and a rank of it",
                    layer.expert_rank, placement.num_experts(), placement.num_ranks(), layer.rule.num_experts);
}

}  // namespace

Status check_activation(const kernels::ActivationRule& rule) {
  if (rule.kind != kernels::Activation::kClampedSwiglu) return {};
  if (rule.limit > 0 && std::isfinite(rule.alpha) && std::isfinite(rule.up_offset)) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "clamped SwiGLU: found alpha {}, limit {}, offset {}; legal are a limit above 0 (infinity: none) "
                    "and a finite alpha and offset",
                    rule.alpha, rule.limit, rule.up_offset);
}

Status check_mlp(const GatedMlp& mlp, int64_t num_experts) {
  QD_TRY_STATUS(check_activation(mlp.activation));
  const int64_t columns = mlp.activation.gated() ? 2 * mlp.width : mlp.width;
  QD_TRY_STATUS(check_linear(mlp.gate_up, "gate_up", columns, mlp.hidden, num_experts));
  const int64_t down_k = mlp.down_k == 0 ? mlp.width : mlp.down_k;
  if (mlp.down_offset < 0 || mlp.down_offset + mlp.width > down_k) {
    return make_error(ErrorCode::kInvalidArgument, "layer: down: {} columns from {} on do not fit into a row of {}",
                      mlp.width, mlp.down_offset, down_k);
  }
  return check_linear(mlp.down, "down", mlp.hidden, down_k, num_experts);
}

Status check_layer(const MoeLayer& layer) {
  QD_TRY_STATUS(check_router_rule(layer.rule));
  QD_TRY_STATUS(check_placement(layer));
  const int64_t held =
      layer.placement == nullptr ? layer.rule.num_experts : layer.placement->num_slots(layer.expert_rank);
  QD_TRY_STATUS(check_mlp(layer.experts, held));
  if (!layer.shared) return {};
  if (layer.shared->hidden != layer.experts.hidden) {
    return make_error(ErrorCode::kInvalidArgument, "layer: shared expert of hidden size {}, experts of {}",
                      layer.shared->hidden, layer.experts.hidden);
  }
  return check_mlp(*layer.shared);
}

void route(const MoeLayer& layer, const float* x, int64_t num_tokens, const Execution& execution, float* logits,
           int32_t* ids, float* weights) {
  QD_CHECK(layer.router_weight != nullptr, "a layer without a router runs with given routes only");
  if (num_tokens == 0) return;
  execution.table->router_logits(
      {num_tokens, layer.rule.num_experts, layer.experts.hidden, x, layer.router_weight, logits}, execution.kernels);
  route_tokens(layer.rule, layer.correction_bias, logits, num_tokens, ids, weights, execution.kernels.pool);
}

Status run_layer(const MoeLayer& layer, const float* x, int64_t num_tokens, const Routes& routes,
                 const Execution& execution, float* out, LayerObserver* observer) {
  const Watch watch(observer, execution);
  const int64_t top_k = layer.rule.top_k;
  const int64_t hidden = layer.experts.hidden;
  const bool weight_on_input = layer.rule.weight_on_input;
  const bool is_spread = layer.placement != nullptr && execution.is_spread();
  LinearInput input(x, num_tokens, hidden);
  QD_TRY(const RoutedRows routed, is_spread ? run_spread(layer, &input, routes, execution, watch)
                                            : run_here(layer, &input, routes, execution, watch));
  QD_TRY(const SharedOutput shared, run_shared(layer, &input, execution, observer));

  if (num_tokens > 0) {
    const std::vector<float> ones(weight_on_input ? num_tokens * top_k : 0, 1.0f);
    kernels::Combine problem;
    problem.rounding = execution.is_split() ? Rounding::kF32 : execution.rounding;  // else rounded after the sum
    problem.num_tokens = num_tokens;
    problem.top_k = top_k;
    problem.width = hidden;
    problem.rows = routed.rows;
    problem.slot = routed.row_of_route.data();
    problem.weight = weight_on_input ? ones.data() : routes.weights;
    problem.shared = shared.rows;
    problem.shared_gate = shared.gate;
    problem.out = out;
    execution.table->combine(problem, execution.kernels);
    QD_TRY_STATUS(sum_over_ranks(execution, out, num_tokens * hidden));
  }
  watch.values("out", out, num_tokens, hidden, true);
  return {};
}

Status run_mlp(const GatedMlp& mlp, LinearInput* input, const Execution& execution, float* out,
               LayerObserver* observer) {
  QD_TRY_STATUS(run_grouped_mlp(mlp, input, execution, Watch(observer, execution), out));
  return sum_over_ranks(execution, out, input->num_rows() * mlp.hidden);
}

}  // namespace quadrille::moe
