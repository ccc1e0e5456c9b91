// SPDX-License-Identifier: Apache-2.0
// quadrille verify: a model over ranks, on CPUs or GPUs, against the same model on one rank, layer by layer and end to
// end. Says "equal" or where it differs first. With --against: the texts of two devices (verify_devices.h).
#include <algorithm>
#include <cmath>
#include <memory>
#include <set>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/load_model.h"
#include "cli/rank_grid.h"
#include "cli/ranks.h"
#include "cli/signals.h"
#include "cli/verify_devices.h"
#include "cli/verify_layers.h"
#include "cli/verify_subject.h"
#include "cli/verify_texts.h"

namespace quadrille::cli {
namespace {

constexpr int64_t kBatch = 32;

struct EndToEnd {
  int64_t texts = 0, equal = 0, steps = 0;
  int64_t right_one = -1, right_many = -1;  // of problems
  std::vector<TextDifference> different;
  int64_t unexplained() const {
    return std::count_if(different.begin(), different.end(), [](const auto& d) { return !d.is_explained(); });
  }
};

struct Repeat {
  bool runs = true, ranks = true;
  double logit_difference = 0;  // of the ranks to one rank, each on its own
};

// Of all MoE layers together: an expert that no token chose has not been compared.
struct ExpertsSeen {
  int64_t all = 0, seen = 0;
};

struct VerifyReport {
  LayerReport layers;
  ExpertsSeen experts;
  EndToEnd texts;
  Repeat repeat;
  bool is_equal() const {
    return layers.differing_tensors == 0 && texts.unexplained() == 0 && repeat.runs && repeat.ranks;
  }
};

ExpertsSeen count_experts(const model::ModelConfig& config, const std::vector<TraceRecord>& trace) {
  std::set<std::pair<int32_t, int32_t>> chosen;  // layer, expert
  for (const TraceRecord& record : trace) {
    if (record.stage != "router_ids") continue;
    for (int64_t i = 0; i < record.rows * record.width; ++i) chosen.emplace(record.layer, record.as<int32_t>()[i]);
  }
  return {config.num_moe_layers() * config.router.num_experts, static_cast<int64_t>(chosen.size())};
}

Result<Repeat> check_repeats(model::AnyModel& many, parallel::Communicator& ranks, const Sequences& sequences,
                             const std::vector<TraceRecord>& trace) {
  Repeat repeat;
  std::vector<float> runs[2];
  for (std::vector<float>& run : runs) {
    QD_TRY_STATUS(run_steps(many, sequences, &ranks, {}, [&](int32_t, std::span<const float> logits, int64_t) {
      run.insert(run.end(), logits.begin(), logits.end());
    }));
  }
  const auto bytes = [](const std::vector<float>& x) {
    return std::string_view(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(float));
  };
  const bool same = bytes(runs[0]) == bytes(runs[1]);
  QD_TRY(const auto hashes,
         gather_texts(ranks, fmt::format("{} {}", same, std::hash<std::string_view>()(bytes(runs[0])))));
  for (const std::string& hash : hashes) {
    repeat.runs = repeat.runs && hash.starts_with("true");
    repeat.ranks = repeat.ranks && hash == hashes[0];
  }
  size_t at = 0;
  for (const TraceRecord& record : trace) {
    if (record.stage != "logits") continue;
    for (int64_t i = 0; i < record.rows * record.width; ++i, ++at) {
      const double distance = std::abs(static_cast<double>(record.as<float>()[i]) - runs[0][at]);
      repeat.logit_difference = std::max(repeat.logit_difference, distance);
    }
  }
  return repeat;
}

// `one` is null on ranks above 0; what differs is explained there alone.
Result<EndToEnd> compare_texts(model::AnyModel* one, model::AnyModel& many, parallel::Communicator& ranks,
                               const Subject& subject, const SumRules& rules) {
  EndToEnd found;
  Texts texts;
  if (one != nullptr) {
    QD_TRY(texts, answer_greedily(*one, subject.streams(), subject.requests, kBatch, nullptr));
  }
  QD_TRY(const Texts other, answer_greedily(many, subject.streams(), subject.requests, kBatch, &ranks));
  if (interrupted()) return interrupted_error("verify");
  if (one == nullptr) return found;
  found.texts = static_cast<int64_t>(subject.requests.size());
  for (const auto& ids : texts.ids) found.steps += static_cast<int64_t>(ids.size()) + 1;
  if (!subject.problems.empty()) {
    found.right_one = count_right(subject.problems, texts);
    found.right_many = count_right(subject.problems, other);
  }
  for (size_t i = 0; i < subject.requests.size(); ++i) {
    if (texts.ids[i] == other.ids[i]) {
      ++found.equal;
      continue;
    }
    QD_TRY(TextDifference difference,
           explain(*one, subject.requests[i], texts.ids[i], other.ids[i], found.steps, rules));
    difference.prompt = static_cast<int64_t>(i);
    found.different.push_back(difference);
  }
  return found;
}

void print_report(Console& console, const VerifyOptions& options, const VerifyReport& report, const std::string& how) {
  const LayerReport& layers = report.layers;
  console.print("{}: {} ranks against one ({})\n\n", options.model.folder, num_ranks(options.model), how);
  console.print("layer by layer, from equal input: {}\n",
                layers.differing_tensors == 0 ? "equal" : fmt::format("{} tensors differ", layers.differing_tensors));
  if (!layers.found.empty()) console.print("  first: {}\n", layers.found[0].text());
  for (size_t i = 1; i < layers.found.size(); ++i) console.print("  then:  {}\n", layers.found[i].text());
  console.print("  on rank 0: {} tensors; {} values bit for bit, {} sums up to {:.0f} % of their bounds\n",
                layers.tensors, layers.values, layers.sums, 100 * layers.largest_share);
  if (report.experts.all > 0) {
    console.print("  experts that some token chose: {} of {}\n", report.experts.seen, report.experts.all);
  }
  const EndToEnd& texts = report.texts;
  console.print("end to end: {} of {} texts equal", texts.equal, texts.texts);
  if (texts.right_one >= 0) console.print("; {} right, one rank {}", texts.right_many, texts.right_one);
  console.print("; largest difference of a logit {:.3g}\n", report.repeat.logit_difference);
  for (const TextDifference& d : texts.different) {
    console.print("  text {}, step {}: token {} on one rank, {} on the ranks; margin {:.4f}, {} the bound {:.4f}\n",
                  d.prompt, d.step, d.one, d.many, d.margin, d.is_explained() ? "within" : "ABOVE", d.bound);
  }
  console.print("again: {}; every rank: {}\n", report.repeat.runs ? "the same bits" : "OTHER BITS",
                report.repeat.ranks ? "the same bits" : "OTHER BITS");
  console.print("\n{}\n", report.is_equal() ? "equal" : "DIFFERENT");
}

nlohmann::json report_json(const VerifyOptions& options, const VerifyReport& report, const nlohmann::json& settings) {
  nlohmann::json found = nlohmann::json::array(), texts = nlohmann::json::array();
  for (const Difference& d : report.layers.found) {
    found.push_back({{"step", d.step},
                     {"layer", d.layer},
                     {"module", d.module},
                     {"what", d.what},
                     {"row", d.row},
                     {"column", d.column},
                     {"expected", d.expected},
                     {"found", d.found},
                     {"rank", d.rank},
                     {"differing", d.count},
                     {"bound", d.bound}});
  }
  for (const TextDifference& d : report.texts.different) {
    texts.push_back({{"text", d.prompt},
                     {"step", d.step},
                     {"token_one_rank", d.one},
                     {"token_ranks", d.many},
                     {"margin", d.margin},
                     {"deviation", d.deviation},
                     {"bound", d.bound},
                     {"within", d.is_explained()}});
  }
  return {{"model", options.model.folder},
          {"ranks", num_ranks(options.model)},
          {"settings", settings},
          {"equal", report.is_equal()},
          {"layers",
           {{"tensors", report.layers.tensors},
            {"values", report.layers.values},
            {"sums", report.layers.sums},
            {"largest_share_of_a_bound", report.layers.largest_share},
            {"differing_tensors", report.layers.differing_tensors},
            {"experts", report.experts.all},
            {"experts_chosen", report.experts.seen},
            {"found", found}}},
          {"texts",
           {{"count", report.texts.texts},
            {"equal", report.texts.equal},
            {"steps", report.texts.steps},
            {"right_one_rank", report.texts.right_one},
            {"right_ranks", report.texts.right_many},
            {"beyond_bound", report.texts.unexplained()},
            {"different", texts}}},
          {"largest_logit_difference", report.repeat.logit_difference},
          {"repeats", report.repeat.runs},
          {"ranks_agree", report.repeat.ranks}};
}

SumRules sum_rules(const LoadedModel& many, int ranks) {
  SumRules rules;
  rules.ranks = ranks;
  rules.rounds_to_bf16 = many.model->rounding() == kernels::Rounding::kBf16;
  rules.tensor_core = many.model->backend() == "hopper" || many.model->backend() == "cuda";
  rules.weight_on_input = many.model->config().router.weight_on_input;
  return rules;
}

// Before any rank starts: what cannot be compared at all.
Status check_subject(const VerifyOptions& options) {
  if (options.other.empty()) return {};
  QD_TRY(const model::ModelConfig one, model::read_model_config(options.model.folder));
  QD_TRY(const model::ModelConfig other, model::read_model_config(options.other));
  const auto shape = [](const model::ModelConfig& c) {
    return fmt::format(
        "{} layers, hidden size {}, {} and {} heads of {}, {} experts of width {}, {} of each token, "
        "shared width {}, dense width {}, vocabulary {}",
        c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.router.num_experts, c.expert_width,
        c.router.top_k, c.shared_width, c.dense_width, c.vocab_size);
  };
  if (shape(one) == shape(other)) return {};
  throw CLI::ValidationError("--other", fmt::format("{} has another shape than {}: {}; expected {}", options.other,
                                                    options.model.folder, shape(other), shape(one)));
}

// On every rank; rank 0 also has the model of one rank.
Status run_verify(Console& console, const VerifyOptions& options) {
  parallel::Communicator& ranks = *options.model.ranks;
  QD_TRY(const model::ModelConfig config, model::read_model_config(options.model.folder));
  const Sequences sequences = built_in_sequences(config.vocab_size, config.max_positions - 1, options.model.seed + 1);
  QD_TRY(const Subject subject, make_subject(options, config, sequences));
  QD_TRY(const int64_t positions,
         cache_positions(options.model.folder, kBatch, std::max<int64_t>(subject.longest(), 64)));
  ModelOptions of_ranks = options.model;
  if (!options.other.empty()) of_ranks.folder = options.other;
  QD_TRY(const LoadedModel many, load_model(console, of_ranks, positions));
  const SumRules rules = sum_rules(many, options.model.tp);
  std::optional<LoadedModel> one;
  std::vector<TraceRecord> trace;
  if (ranks.rank() == 0) {
    ModelOptions alone = options.model;
    alone.tp = 1;
    alone.ep = 1;
    alone.ranks = alone.tensor_ranks = alone.expert_ranks = nullptr;
    QD_TRY(LoadedModel loaded, load_model(console, alone, positions));
    one.emplace(std::move(loaded));
    const auto set = [&](model::StepObserver* observer) { one->model->set_observer(observer); };
    QD_TRY(trace, record_trace(*one->model, set, sequences, rules));
  }
  QD_TRY_STATUS(share_trace(ranks, &trace));
  const RankGroups grid{ranks, options.model.tensor_ranks == nullptr ? ranks : *options.model.tensor_ranks};
  VerifyReport report;
  report.experts = count_experts(config, trace);
  QD_TRY(report.layers, compare_layers(*many.model, grid, trace, sequences));
  QD_TRY(report.repeat, check_repeats(*many.model, ranks, sequences, trace));
  QD_TRY(report.texts, compare_texts(one ? &*one->model : nullptr, *many.model, ranks, subject, rules));
  if (options.as_json && !console.muted()) {
    QD_TRY_STATUS(write_json(console, "-", report_json(options, report, settings_json(many, options.model))));
  } else {
    print_report(console, options, report, settings_text(many));
  }
  // Every rank ends alike.
  if (!any_rank(&ranks, !report.is_equal())) return {};
  return make_error(ErrorCode::kInvalidData, "{}: {} ranks do not compute what one rank computes", options.model.folder,
                    ranks.size());
}

}  // namespace

void add_verify(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("verify", "Compare a model over ranks with one rank, or on two devices");
  auto options = std::make_shared<VerifyOptions>();
  add_model_options(*app, options->model);
  add_rank_options(*app, options->model);
  add_grid_options(*app, options->model);
  auto* prompt = app->add_option("--prompt", options->prompt, "Text to answer; default: token sequences from the seed")
                     ->type_name("TEXT");
  app->add_option("--problems", options->problems, "Answer the problems of a GSM8K or MMLU-Pro file")
      ->type_name("FILE")
      ->excludes(prompt);
  app->add_option("--count", options->count, "How many of them; 0: all")->check(CLI::NonNegativeNumber);
  app->add_option("--max-tokens", options->max_tokens, "Longest answer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app->add_option("--other", options->other, "Load the ranks from this folder: finds where a copy of a model differs")
      ->type_name("FOLDER");
  app->add_option("--against", options->against, "Compare the texts of --device with those of this device: cpu or cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->type_name("DEVICE");
  app->add_flag("--json", options->as_json, "Print one JSON object instead of the table");
  commands.push_back(
      {app, [options](Console& console) -> Status {
         QD_TRY_STATUS(check_subject(*options));
         if (!options->against.empty()) {
           QD_TRY_STATUS(check_against(*options));
           return verify_devices(console, *options);
         }
         return run_on_ranks(console, options->model, [&](Console& own_console, const ModelOptions& model) -> Status {
           if (model.ranks == nullptr) {
             throw CLI::ValidationError(
                 "--tp", "needs at least 2 ranks (of --tp times --ep) to compare with one; --against compares devices");
           }
           VerifyOptions own = *options;
           own.model = model;
           return run_verify(own_console, own);
         });
       }});
}

}  // namespace quadrille::cli
