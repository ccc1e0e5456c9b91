// SPDX-License-Identifier: Apache-2.0
// Tables in GiB and ms for people; plan/json.cpp has bytes and microseconds.
#include "cli/plan_report.h"

#include <algorithm>

#include "cli/progress.h"
#include "cli/text_table.h"

namespace quadrille::cli {
namespace {

using namespace plan;  // the words of its numbers

std::string bytes(double value) {
  return bytes_text(value);
}
std::string bytes(int64_t value) {
  return bytes_text(static_cast<double>(value));
}

std::string ms(double us) {
  return us < 10000 ? fmt::format("{:.2f}", us / 1000) : fmt::format("{:.1f}", us / 1000);
}

std::string rate_text(double tokens, double us) {
  return us > 0 ? fmt::format("{:.0f}", tokens / us * 1e6) : "-";
}

std::string billions(int64_t count) {
  return fmt::format("{:.1f}e9", static_cast<double>(count) / 1e9);
}

std::string head_text(const PlanReport& report) {
  const PlanShape& shape = report.shape;
  const auto& config = shape.config;
  const PlanLoad& load = report.request.load;
  std::string text = fmt::format("{} ({}){}\n", shape.name, config.architecture,
                                 shape.why_not_run.empty() ? "" : ": " + shape.why_not_run);
  text += fmt::format("  parameters   {}, of them {} active for a token\n", billions(num_parameters(shape)),
                      billions(num_active_parameters(shape)));
  text += fmt::format("  weights      {}\n", shape.weights);
  text += fmt::format("  GPUs         {} {}, {} a host, {} each\n", report.gpus, report.request.gpu.name,
                      report.plans.empty() ? 0 : report.plans[0].grid.gpus_per_host, bytes(report.request.gpu_memory));
  text += fmt::format("  a step       decode {} sequences at {} positions, or prefill {} tokens, over all GPUs\n",
                      load.decode_tokens, load.context, load.prefill_tokens);
  text += fmt::format("  attention    {}\n\n", load.attention == AttentionOver::kDivided
                                                   ? "divided: each expert-parallel group has its own sequences"
                                                   : "replicated: every expert-parallel group computes all tokens");
  return text;
}

std::string grids_text(const PlanReport& report) {
  TextTable table({"", ">tp", ">ep", ">weights", ">KV a token", ">KV", ">activations", ">all", "fits", ">sent a step",
                   ">to other hosts", ">decode ms", ">tokens/s", ">prefill ms", ">tokens/s"});
  for (size_t i = 0; i < report.plans.size(); ++i) {
    const GridPlan& p = report.plans[i];
    const RankMemory& m = p.memory;
    table.add_row({report.best == i ? "*" : "", std::to_string(p.grid.tp), std::to_string(p.grid.ep),
                   bytes(m.weights.total()), bytes(m.kv_bytes_per_token), bytes(m.kv_bytes), bytes(m.activation_bytes),
                   bytes(m.total()), p.fits ? "yes" : "no", bytes(p.decode.sent), bytes(p.decode.outside),
                   ms(p.decode.total()), rate_text(static_cast<double>(p.decode.tokens), p.decode.total()),
                   ms(p.prefill.total()), rate_text(static_cast<double>(p.prefill.tokens), p.prefill.total())});
  }
  std::string text = table.text();
  for (const std::string& reason : report.illegal) text += fmt::format("not legal: {}\n", reason);
  text += "The largest rank of each grid; sent: bytes that leave a rank in a decode step; times are predictions.\n";
  if (report.smallest) {
    text += fmt::format("Fewest GPUs that hold it: {} (tp {}, ep {}).\n", report.smallest->grid.ranks(),
                        report.smallest->grid.tp, report.smallest->grid.ep);
  } else {
    text += fmt::format("No grid of up to {} GPUs holds it.\n", layout::kMaxRanks);
  }
  return text;
}

std::string parts_text(const StepPlan& step, const char* name) {
  TextTable table({fmt::format("{}, us", name), ">attention", ">router", ">experts", ">shared", ">dense",
                   ">embedding, head", ">collectives", ">all", ">experts hit", ">imbalance"});
  const auto us = [](double value) { return fmt::format("{:.0f}", value); };
  table.add_row({fmt::format("{} tokens", step.tokens), us(step.attention), us(step.router), us(step.experts),
                 us(step.shared), us(step.dense), us(step.embedding + step.head), us(step.collectives_us),
                 us(step.total()), fmt::format("{:.1f}", step.experts_hit), fmt::format("{:.2f}", step.imbalance)});
  return "\n" + table.text();
}

void add_collectives(const StepPlan& step, const char* name, TextTable* table) {
  for (const PlanCollective& c : step.collectives) {
    table->add_row({name, c.name, c.method, std::to_string(c.calls), bytes(c.sent), bytes(c.outside),
                    fmt::format("{:.1f}", c.us), fmt::format("{:.0f}", c.us * static_cast<double>(c.calls)),
                    basis_name(c.basis)});
  }
}

std::string collectives_text(const GridPlan& plan) {
  TextTable table(
      {"step", "collective", "by", ">calls", ">sent a call", ">to other hosts", ">us a call", ">us a step", "time is"});
  add_collectives(plan.decode, "decode", &table);
  add_collectives(plan.prefill, "prefill", &table);
  return table.empty() ? "" : "\n" + table.text();
}

std::string rates_text(const PlanReport& report) {
  TextTable table({"number", ">value", "unit", "is", "from"});
  const auto add = [&](const std::vector<Rate>& rates) {
    for (const Rate& r : rates)
      table.add_row({r.name, fmt::format("{:.4g}", r.value), r.unit, basis_name(r.basis), r.source});
  };
  add(report.request.gpu.all());
  add(link_rates().all());
  return fmt::format("\n{}Collectives between two GPUs of a host: {}.\n", table.text(), link_curve_source());
}

}  // namespace

std::string plan_text(const PlanReport& report, bool with_rates) {
  std::string text = head_text(report) + grids_text(report);
  if (!report.plans.empty()) {
    const GridPlan& shown = report.plans[report.best.value_or(0)];
    text += fmt::format("\ntp {}, ep {}:\n", shown.grid.tp, shown.grid.ep);
    text += parts_text(shown.decode, "decode") + parts_text(shown.prefill, "prefill") + collectives_text(shown);
  }
  return with_rates ? text + rates_text(report) : text;
}

std::string does_not_fit_text(const PlanReport& report) {
  const auto closest = std::min_element(report.plans.begin(), report.plans.end(), [](const auto& a, const auto& b) {
    return a.memory.total() < b.memory.total();
  });
  const RankMemory& m = closest->memory;
  const std::string way_out =
      report.smallest ? fmt::format("the fewest GPUs that hold it are {} (tp {}, ep {})", report.smallest->grid.ranks(),
                                    report.smallest->grid.tp, report.smallest->grid.ep)
                      : fmt::format("no grid of up to {} GPUs holds it", layout::kMaxRanks);
  return fmt::format(
      "{} does not fit on {} {}: the largest rank of tp {}, ep {} needs {} (weights {}, KV {}, activations {}) of {}; "
      "{}. "
      "Fewer sequences (--tokens) or a shorter --context need less",
      report.shape.name, report.gpus, report.request.gpu.name, closest->grid.tp, closest->grid.ep, bytes(m.total()),
      bytes(m.weights.total()), bytes(m.kv_bytes), bytes(m.activation_bytes), bytes(report.request.gpu_memory),
      way_out);
}

std::string layer_times_text(const PlanShape& shape, const GpuRates& gpu, const std::vector<LayerTime>& times) {
  TextTable table({">tp", ">ep", ">tokens", ">experts hit", ">GEMM1 us", ">GEMM2 us", ">rows us", ">collectives us",
                   ">layer us", ">share of collectives"});
  for (const LayerTime& t : times) {
    table.add_row({std::to_string(t.grid.tp), std::to_string(t.grid.ep), std::to_string(t.tokens),
                   fmt::format("{:.0f}", t.experts_hit), fmt::format("{:.1f}", t.time.gemm1),
                   fmt::format("{:.1f}", t.time.gemm2), fmt::format("{:.1f}", t.time.rows),
                   fmt::format("{:.1f}", t.collectives_us), fmt::format("{:.1f}", t.total()),
                   fmt::format("{:.2f}", t.collectives_us / t.total())});
  }
  return fmt::format("{}, routed experts of one layer on {}, predicted; tokens: of each expert-parallel group\n\n{}",
                     shape.name, gpu.name, table.text());
}

}  // namespace quadrille::cli
