// SPDX-License-Identifier: Apache-2.0
// quadrille inspect: architecture, the quantisation decision of each module with the rule that made it, sizes, legal
// tensor-parallel sizes, and what each rank of one gets (inspect_shards.h). Reads headers alone.
#include <algorithm>
#include <map>
#include <memory>

#include "cli/commands.h"
#include "cli/inspect_shards.h"
#include "cli/json_output.h"
#include "cli/progress.h"
#include "cli/rank_grid.h"
#include "cli/text_table.h"
#include "formats/tensor_view.h"
#include "model/description.h"
#include "model/prepared_weights.h"
#include "session/folder_json.h"

namespace quadrille::cli {
namespace {

using model::ModelConfig;
using model::ModelDescription;
using model::ModuleDescription;

struct InspectOptions {
  std::string folder;
  bool as_json = false;
  bool all_modules = false;
  int ranks = 0;  // 0: legal sizes alone
  int expert_ranks = 0;
  bool verify = false;
};

std::string decision_text(const ModuleDescription& module) {
  if (module.decision.kind == formats::QuantizationKind::kUnquantized) return "-";
  return fmt::format("{} group {}", formats::quantization_kind_name(module.decision.kind),
                     session::group_text(module.decision.group_size));
}

std::string experts_text(const ModelConfig& config) {
  if (config.num_moe_layers() == 0) return "none";
  const moe::RouterRule& rule = config.router;
  std::string text = fmt::format("{} of width {}, top-{} in {} layers; {}", rule.num_experts, config.expert_width,
                                 rule.top_k, config.num_moe_layers(), session::scoring_text(rule.scoring));
  if (rule.renormalise) text += ", renormalised";
  if (rule.routed_scaling != 1) text += fmt::format(", times {}", rule.routed_scaling);
  if (rule.num_groups > 1) text += fmt::format(", {} of {} groups", rule.groups_kept, rule.num_groups);
  if (config.shared_width > 0) {
    text += fmt::format("; shared width {}{}", config.shared_width, config.shared_has_gate ? " with gate" : "");
  }
  return text;
}

// "model.layers.3.mlp.experts.17.up_proj" -> "model.layers.*.mlp.experts.*.up_proj"
std::string without_numbers(const std::string& path) {
  std::string result;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    const bool is_number = !part.empty() && part.find_first_not_of("0123456789") == std::string::npos;
    result += (begin == 0 ? "" : ".") + (is_number ? std::string("*") : part);
    begin = end + 1;
  }
  return result;
}

// Modules that differ in nothing but their numbers share a line.
std::string modules_text(const ModelDescription& description, bool all_modules) {
  struct Line {
    int64_t count = 0;
    uint64_t bytes = 0;
    std::vector<std::string> cells;
  };
  std::map<std::string, size_t> index;
  std::vector<Line> lines;
  for (const ModuleDescription& module : description.modules) {
    const std::string path = all_modules ? module.path : without_numbers(module.path);
    std::vector<std::string> cells = {path, formats::shape_text(module.shape), module.storage, decision_text(module),
                                      module.decision.rule};
    std::string key;
    for (const std::string& cell : cells) key += cell + '\n';
    const auto [at, is_new] = index.emplace(key, lines.size());
    if (is_new) lines.push_back({0, 0, std::move(cells)});
    lines[at->second].count += 1;
    lines[at->second].bytes += module.disk_bytes;
  }
  TextTable table({"module", ">count", "shape", "stored as", "runs as", "rule", ">bytes"});
  for (Line& line : lines) {
    table.add_row({line.cells[0], std::to_string(line.count), line.cells[1], line.cells[2], line.cells[3],
                   line.cells[4].empty() ? "-" : line.cells[4], bytes_text(static_cast<double>(line.bytes))});
  }
  return table.text();
}

// A row for each reason.
std::string tensor_parallel_text(const std::vector<model::TpVerdict>& verdicts) {
  TextTable table({">ranks", "tensor parallel", "notes"});
  for (const model::TpVerdict& verdict : verdicts) {
    const char* answer = !verdict.legal ? "no" : verdict.even ? "yes" : "yes, uneven";
    table.add_row({std::to_string(verdict.ranks), answer, verdict.reasons.empty() ? "" : verdict.reasons[0]});
    for (size_t i = 1; i < verdict.reasons.size(); ++i) table.add_row({"", "", verdict.reasons[i]});
  }
  return table.text();
}

void print_text(Console& console, const ModelDescription& description, bool all_modules) {
  const ModelConfig& config = description.config;
  console.print("{}\n", description.folder);
  console.print("  architecture   {} ({})\n", config.architecture, config.family);
  console.print("  layers         {}, hidden {}, vocabulary {}{}, up to {} positions\n", config.num_layers,
                config.hidden_size, config.vocab_size, config.tie_word_embeddings ? " (tied)" : "",
                config.max_positions);
  console.print("  attention      {} query and {} KV heads of {}, rope {} theta {}\n", config.num_heads,
                config.num_kv_heads, config.head_dim, config.rope.type, config.rope.theta);
  console.print("  experts        {}\n", experts_text(config));
  console.print("  quantisation   {}\n",
                description.quantization_format.empty() ? "none" : description.quantization_format);
  console.print("  parameters     {}, of them {} read for a token\n", description.parameters,
                description.active_parameters);
  console.print("  sizes          {} on disk in {} file{}, {} in memory, KV cache {} a position\n\n",
                bytes_text(static_cast<double>(description.disk_bytes)), description.shards.size(),
                description.shards.size() == 1 ? "" : "s",
                bytes_text(static_cast<double>(description.weight_memory_bytes)),
                bytes_text(static_cast<double>(description.kv_bytes_per_position)));
  console.write(modules_text(description, all_modules));
  if (!description.unused_tensors.empty()) {
    console.print("\nNot part of the model: {} tensors, first '{}'\n", description.unused_tensors.size(),
                  description.unused_tensors.front());
  }
  console.write("\n");
  console.write(tensor_parallel_text(description.tensor_parallel));
}

// Reads every byte of a prepared folder's file.
Status verify_prepared(Console& console, const InspectOptions& options) {
  if (!formats::is_prepared_folder(options.folder)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: --verify reads the checksums of a prepared folder, which this is not: a checkpoint has none",
                      options.folder);
  }
  ThreadPool pool;
  QD_TRY(const ModelConfig config, model::read_model_config(options.folder));
  QD_TRY(const model::PreparedCheck check, model::check_prepared(options.folder, config, &pool));
  if (!options.as_json) {
    console.print("{}: {} sections, {}: every checksum is right\n", options.folder, check.sections,
                  bytes_text(static_cast<double>(check.bytes)));
  }
  return {};
}

Status run_inspect(Console& console, const InspectOptions& options) {
  if (options.verify) QD_TRY_STATUS(verify_prepared(console, options));
  QD_TRY(const ModelDescription description, model::describe_model(options.folder, console.log_sink()));
  std::vector<model::RankShare> shares;
  if (options.ranks > 0 || options.expert_ranks > 0) {
    auto planned = model::rank_shares(description.plan, std::max(options.ranks, 1), std::max(options.expert_ranks, 1));
    if (!planned) return planned.error().in(options.folder);
    shares = std::move(*planned);
  }
  if (options.as_json) {
    nlohmann::json json = session::description_json(description);
    if (!shares.empty()) json["ranks"] = shares_json(shares);
    console.print("{}\n", json_text(json));
    return {};
  }
  print_text(console, description, options.all_modules);
  if (!shares.empty()) console.print("\n{}", shares_text(shares));
  return {};
}

}  // namespace

void add_inspect(CLI::App& program, std::vector<Command>& commands) {
  auto* app =
      program.add_subcommand("inspect", "Architecture, quantisation of each module, sizes, tensor-parallel sizes");
  auto options = std::make_shared<InspectOptions>();
  app->add_option("MODEL", options->folder, "Folder of the checkpoint")->required()->type_name("");
  app->add_flag("--modules", options->all_modules, "A line for each module, not for each kind");
  app->add_option("--tp", options->ranks, "Show what each of N tensor-parallel ranks gets")
      ->type_name("N")
      ->check(CLI::Range(1, layout::kMaxRanks));
  app->add_option("--ep", options->expert_ranks, "Show what each of N expert-parallel ranks gets, of a grid with --tp")
      ->type_name("N")
      ->check(CLI::Range(1, kMaxExpertRanks));
  app->add_flag("--verify", options->verify, "Read a prepared folder's whole file and compare every checksum first");
  app->add_flag("--json", options->as_json, "Print JSON");
  commands.push_back({app, [options](Console& console) { return run_inspect(console, *options); }});
}

}  // namespace quadrille::cli
