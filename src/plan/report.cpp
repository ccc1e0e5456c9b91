// SPDX-License-Identifier: Apache-2.0
// Opens the shape, plans every grid that was asked for, keeps the reasons of those that are none.
#include "plan/report.h"

#include <algorithm>
#include <filesystem>

#include "plan/known_shapes.h"

namespace quadrille::plan {
namespace {

Status check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return {};
  return make_error(ErrorCode::kInvalidArgument, "plan: {}: expected {} to {}, found {}", name, least, most, value);
}

Status check_question(const PlanQuestion& q) {
  constexpr int64_t kManyTokens = 1 << 20;
  QD_TRY_STATUS(check_range("gpus", q.gpus, 0, layout::kMaxRanks));
  QD_TRY_STATUS(check_range("tp", q.tp, 0, layout::kMaxRanks));
  QD_TRY_STATUS(check_range("ep", q.ep, 0, layout::kMaxRanks));
  QD_TRY_STATUS(check_range("gpus_per_host", q.gpus_per_host, 1, layout::kMaxRanks));
  QD_TRY_STATUS(check_range("decode_tokens", q.decode_tokens, 1, kManyTokens));
  QD_TRY_STATUS(check_range("context", q.context, 1, kManyTokens));
  QD_TRY_STATUS(check_range("prefill_tokens", q.prefill_tokens, 1, kManyTokens));
  constexpr double kManyGib = 1 << 20;
  if (q.gpu_memory_gib >= 0 && q.gpu_memory_gib <= kManyGib) return {};
  return make_error(ErrorCode::kInvalidArgument, "plan: gpu_memory_gib: expected 0 (the GPU's) to {}, found {}",
                    kManyGib, q.gpu_memory_gib);
}

std::string joined(const std::vector<std::string>& list, const char* between) {
  std::string text;
  for (const std::string& item : list) text += (text.empty() ? "" : between) + item;
  return text;
}

}  // namespace

Result<PlanShape> open_shape(const std::string& model, std::optional<int64_t> group_size) {
  const ShapeOptions options{group_size};
  const std::vector<std::string> names = named_shapes();
  if (std::find(names.begin(), names.end(), model) != names.end()) {
    QD_TRY(const formats::HfConfig raw, named_shape(model));
    return make_plan_shape(model, raw, options);
  }
  std::error_code ignored;
  if (!std::filesystem::is_directory(model, ignored)) {
    return make_error(ErrorCode::kNotFound, "'{}' is neither a folder with a config.json nor one of the shapes: {}",
                      model, joined(names, ", "));
  }
  QD_TRY(const formats::HfConfig raw, formats::read_hf_config(model));
  return make_plan_shape(model, raw, options);
}

Result<std::vector<PlanGrid>> wanted_grids(const PlanQuestion& question) {
  const int gpus = question.gpus > 0 ? question.gpus : std::max(1, question.tp) * std::max(1, question.ep);
  if (gpus > layout::kMaxRanks) {
    return make_error(ErrorCode::kInvalidArgument, "{} GPUs: expected 1 to {}", gpus, layout::kMaxRanks);
  }
  std::vector<PlanGrid> grids;
  for (const PlanGrid& grid : grids_of(gpus, question.gpus_per_host)) {
    const bool is_wanted = (question.tp == 0 || grid.tp == question.tp) && (question.ep == 0 || grid.ep == question.ep);
    if (is_wanted) grids.push_back(grid);
  }
  if (!grids.empty()) return grids;
  return make_error(ErrorCode::kInvalidArgument, "tp * ep must be the number of GPUs: tp {}, ep {}, {} GPUs",
                    question.tp == 0 ? "any" : std::to_string(question.tp),
                    question.ep == 0 ? "any" : std::to_string(question.ep), gpus);
}

Result<PlanReport> make_report(const PlanQuestion& question) {
  QD_TRY_STATUS(check_question(question));
  PlanReport report;
  QD_TRY(report.shape, open_shape(question.model, question.group_size));
  QD_TRY(report.request.gpu, gpu_rates(question.gpu));
  const GpuRates& gpu = report.request.gpu;
  report.request.gpu_memory = question.gpu_memory_gib > 0 ? static_cast<int64_t>(question.gpu_memory_gib * 1073741824.0)
                                                          : static_cast<int64_t>(gpu.memory.value - gpu.reserve.value);
  report.request.load = {question.decode_tokens, question.context, question.prefill_tokens, question.attention};
  QD_TRY(const std::vector<PlanGrid> grids, wanted_grids(question));
  report.gpus = grids[0].ranks();
  for (const PlanGrid& grid : grids) {
    auto plan = plan_grid(report.shape, grid, report.request);
    if (plan) {
      report.plans.push_back(std::move(*plan));
    } else {
      report.illegal.push_back(fmt::format("tp {}, ep {}: {}", grid.tp, grid.ep, plan.error().message));
    }
  }
  if (report.plans.empty()) {
    return make_error(ErrorCode::kUnsupported, "{}: no legal grid of {} GPUs: {}", report.shape.name, report.gpus,
                      joined(report.illegal, "; "));
  }
  report.best = best_grid(report.plans);
  report.smallest = smallest_that_fits(report.shape, report.request, question.gpus_per_host);
  return report;
}

Result<std::vector<model::TpVerdict>> legal_tp(const std::string& model, int max_ranks) {
  QD_TRY_STATUS(check_range("max_ranks", max_ranks, 1, layout::kMaxRanks));
  QD_TRY(const PlanShape shape, open_shape(model));
  model::PlannedModel planned;  // the verdicts ask for the shape alone
  planned.shape = shard_shape(shape);
  planned.norm_spans_heads = shape.config.qk_norm == model::QkNorm::kWholeProjection;
  return model::legal_tp(planned, max_ranks);
}

}  // namespace quadrille::plan
