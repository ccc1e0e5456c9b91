// SPDX-License-Identifier: Apache-2.0
// Declares the shared options; values out of range are refused here, before any file is opened.
#include "cli/args.h"

#include "core/result.h"
#include "kernels/api/registry.h"

namespace quadrille::cli {

kernels::Numerics ModelOptions::numerics_value() const {
  return numerics == "vllm" ? kernels::Numerics::kVllm : kernels::Numerics::kExact;
}

kernels::Rounding ModelOptions::rounding_value() const {
  return rounding == "f32" ? kernels::Rounding::kF32 : kernels::Rounding::kBf16;
}

int ModelOptions::gpu_ordinal() const {
  const size_t colon = device.find(':');
  return colon == std::string::npos ? 0 : std::stoi(device.substr(colon + 1));
}

NumaChoice ModelOptions::numa_value() const {
  NumaChoice choice;
  if (const auto parsed = parse_numa(numa)) choice = *parsed;  // checked where the option was read
  choice.local_rank = local_rank;
  return choice;
}

namespace {

// "" where `text` is a choice.
std::string check_numa(const std::string& text) {
  const auto choice = parse_numa(text);
  return choice ? "" : choice.error().message;
}

// "" where `text` names a device.
std::string check_device(const std::string& text) {
  if (text == "cpu" || text == "cuda") return "";
  const std::string number = text.starts_with("cuda:") ? text.substr(5) : "";
  const bool is_number =
      !number.empty() && number.size() <= 3 && number.find_first_not_of("0123456789") == std::string::npos;
  return is_number ? "" : fmt::format("'{}': expected cpu, cuda or cuda:N", text);
}

}  // namespace

void add_numerics_options(CLI::App& app, ModelOptions& options) {
  std::vector<std::string> tables;
  for (const kernels::KernelTable* table : kernels::all_tables()) tables.emplace_back(table->name);
  app.add_option("--numerics", options.numerics, "Arithmetic of the W4A8 layers")
      ->check(CLI::IsMember({"exact", "vllm"}))
      ->capture_default_str();
  app.add_option("--round", options.rounding, "Where intermediate values are rounded: to bf16, or nowhere (f32)")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  app.add_option("--kernels", options.kernels, "Kernel table; the best one of this machine when not given")
      ->check(CLI::IsMember(tables));
  app.add_option("--threads", options.threads, "Threads; 0: one for each usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Seed of everything random")->capture_default_str();
}

void add_model_options(CLI::App& app, ModelOptions& options) {
  app.add_option("MODEL", options.folder, "Folder of the checkpoint")->required()->type_name("");
  add_numerics_options(app, options);
  app.add_option("--activations", options.activations,
                 "fp8: run a weight-only (W4A16) checkpoint as W4A8; without it such a checkpoint is refused")
      ->check(CLI::IsMember({"checkpoint", "fp8"}))
      ->capture_default_str();
  app.add_option("--scales", options.scales, "round: round weight scales that bf16 does not hold, and report the error")
      ->check(CLI::IsMember({"keep", "round"}))
      ->capture_default_str();
  app.add_option("--cache-tokens", options.cache_tokens, "Positions of the KV cache; 0: what the command needs")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32))
      ->capture_default_str();
  app.add_option("--numa", options.numa,
                 "Threads and memory of the model: off: where the system puts them; node=K: on that NUMA node; "
                 "interleave: over all nodes; rank: each rank of the machine on a node of its own")
      ->check(CLI::Validator(check_numa, "off|node=K|interleave|rank"))
      ->capture_default_str();
  app.add_option("--device", options.device, "Where the model computes: cpu, cuda (the first GPU) or cuda:N")
      ->check(CLI::Validator(check_device, "cpu|cuda[:N]"))
      ->capture_default_str();
  app.add_option("--gpu-memory", options.gpu_memory,
                 "Most of the GPU's memory to use: bytes (20G, 512MiB) or a share of it (0.8); all that is free when "
                 "not given")
      ->type_name("BYTES|SHARE");
  app.add_flag("--load-report", options.load_report,
               "Of a load to a GPU: where its time went, beside the rate of the link, on stderr");
  app.add_flag("-q,--quiet", options.quiet, "No progress and no statistics on stderr");
}

void add_sampling_options(CLI::App& app, SamplingOptions& options) {
  auto& params = options.params;
  app.add_option("--temperature", params.temperature, "0: greedy")
      ->check(CLI::Range(0.0F, 100.0F))
      ->capture_default_str();
  app.add_option("--top-k", params.top_k, "Keep the k best tokens; 0: off")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--top-p", params.top_p, "Keep the best tokens up to this probability; 1: off")
      ->check(CLI::Range(0.0F, 1.0F))
      ->capture_default_str();
  app.add_option("--min-p", params.min_p, "Keep tokens of at least this share of the best one's probability; 0: off")
      ->check(CLI::Range(0.0F, 1.0F))
      ->capture_default_str();
  app.add_option("--repetition-penalty", params.repetition_penalty, "Above 1 makes known tokens less likely; 1: off")
      ->check(CLI::Range(0.01F, 100.0F))
      ->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "Longest answer; 0: the default, cut to the model's positions")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  app.add_option("--stop", options.stop, "The answer ends before this text (may be given several times)")
      ->type_name("TEXT")
      ->take_all();
  app.add_flag("--ignore-eos", options.ignore_eos, "Go on behind end-of-sequence tokens");
}

}  // namespace quadrille::cli
