// SPDX-License-Identifier: Apache-2.0
// The plan for scripts: bytes and microseconds, every constant with its source.
#include "plan/report.h"

namespace quadrille::plan {
namespace {

using nlohmann::json;

json grid_json(const PlanGrid& grid) {
  return {{"tp", grid.tp}, {"ep", grid.ep}, {"gpus", grid.ranks()}, {"hosts", grid.hosts()}};
}

json memory_json(const RankMemory& m) {
  json parts = json::object();
  for (int i = 0; i < kNumPlanParts; ++i) {
    parts[plan_part_name(static_cast<PlanPart>(i))] = m.weights.bytes[static_cast<size_t>(i)];
  }
  return {{"weight_bytes", m.weights.total()},          {"weights", parts},
          {"kv_bytes_per_token", m.kv_bytes_per_token}, {"kv_bytes", m.kv_bytes},
          {"activation_bytes", m.activation_bytes},     {"total_bytes", m.total()}};
}

json collectives_json(const std::vector<PlanCollective>& collectives) {
  json list = json::array();
  for (const PlanCollective& c : collectives) {
    list.push_back({{"name", c.name},
                    {"method", c.method},
                    {"calls", c.calls},
                    {"bytes_sent", c.sent},
                    {"bytes_to_other_hosts", c.outside},
                    {"us", c.us},
                    {"basis", basis_name(c.basis)}});
  }
  return list;
}

json step_json(const StepPlan& s) {
  const double us = s.total();
  return {{"tokens", s.tokens},
          {"predicted_us", us},
          {"predicted_tokens_per_second", us > 0 ? static_cast<double>(s.tokens) / us * 1e6 : 0},
          {"parts_us",
           {{"embedding", s.embedding},
            {"attention", s.attention},
            {"router", s.router},
            {"experts", s.experts},
            {"shared", s.shared},
            {"dense", s.dense},
            {"head", s.head},
            {"collectives", s.collectives_us}}},
          {"bytes_sent", s.sent},
          {"bytes_to_other_hosts", s.outside},
          {"experts_hit", s.experts_hit},
          {"imbalance", s.imbalance},
          {"collectives", collectives_json(s.collectives)}};
}

json rate_json(const std::vector<Rate>& rates) {
  json list = json::array();
  for (const Rate& r : rates) {
    list.push_back(
        {{"name", r.name}, {"value", r.value}, {"unit", r.unit}, {"basis", basis_name(r.basis)}, {"source", r.source}});
  }
  return list;
}

json curves_json() {
  json list = json::array();
  for (const LinkKind kind : {LinkKind::kAllReduce, LinkKind::kAllGather, LinkKind::kAllToAll}) {
    json points = json::array();
    for (const LinkPoint& p : link_curve(kind)) points.push_back({p.bytes, p.us});
    constexpr const char* kNames[] = {"all_reduce", "all_gather", "all_to_all"};
    list.push_back({{"name", kNames[static_cast<int>(kind)]}, {"bytes_us", points}, {"source", link_curve_source()}});
  }
  return list;
}

json shape_json(const PlanShape& shape) {
  return {{"name", shape.name},
          {"architecture", shape.config.architecture},
          {"runs", shape.why_not_run.empty()},
          {"note", shape.why_not_run},
          {"weights", shape.weights},
          {"parameters", num_parameters(shape)},
          {"active_parameters", num_active_parameters(shape)},
          {"layers", shape.config.num_layers},
          {"moe_layers", shape.config.num_moe_layers()},
          {"hidden_size", shape.config.hidden_size},
          {"expert_width", shape.config.expert_width},
          {"num_experts", shape.config.router.num_experts},
          {"top_k", shape.config.router.top_k}};
}

}  // namespace

json plan_json(const PlanReport& report) {
  const PlanLoad& load = report.request.load;
  json out = {{"model", shape_json(report.shape)},
              {"gpu", report.request.gpu.name},
              {"gpus", report.gpus},
              {"gpu_memory_bytes", report.request.gpu_memory},
              {"decode_tokens", load.decode_tokens},
              {"context", load.context},
              {"prefill_tokens", load.prefill_tokens},
              {"attention", load.attention == AttentionOver::kDivided ? "divided" : "replicated"},
              {"grids", json::array()},
              {"illegal", report.illegal},
              {"best", nullptr},
              {"smallest_that_fits", nullptr},
              {"rates", rate_json(report.request.gpu.all())},
              {"link_rates", rate_json(link_rates().all())},
              {"link_curves", curves_json()}};
  for (size_t i = 0; i < report.plans.size(); ++i) {
    const GridPlan& p = report.plans[i];
    json grid = grid_json(p.grid);
    grid["best"] = report.best == i;
    grid["fits"] = p.fits;
    grid["rank"] = memory_json(p.memory);
    grid["decode"] = step_json(p.decode);
    grid["prefill"] = step_json(p.prefill);
    out["grids"].push_back(std::move(grid));
  }
  if (report.best) out["best"] = grid_json(report.plans[*report.best].grid);
  if (report.smallest) {
    out["smallest_that_fits"] = grid_json(report.smallest->grid);
    out["smallest_that_fits"]["rank"] = memory_json(report.smallest->memory);
  }
  return out;
}

json layer_times_json(const PlanShape& shape, const GpuRates& gpu, const std::vector<LayerTime>& times) {
  json out = {{"model", shape_json(shape)},
              {"gpu", gpu.name},
              {"what", "routed experts of one layer, bf16 rows, ids and weights in, bf16 rows out; predicted"},
              {"times", json::array()},
              {"rates", rate_json(gpu.all())},
              {"link_rates", rate_json(link_rates().all())}};
  for (const LayerTime& t : times) {
    json row = grid_json(t.grid);
    row["tokens_a_group"] = t.tokens;
    row["experts_hit"] = t.experts_hit;
    row["gemm1_us"] = t.time.gemm1;
    row["gemm2_us"] = t.time.gemm2;
    row["rows_us"] = t.time.rows;
    row["collectives_us"] = t.collectives_us;
    row["layer_us"] = t.total();
    row["collectives_share"] = t.collectives_us / t.total();
    row["collectives"] = collectives_json(t.collectives);
    out["times"].push_back(std::move(row));
  }
  return out;
}

}  // namespace quadrille::plan
