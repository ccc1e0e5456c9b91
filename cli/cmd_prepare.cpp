// SPDX-License-Identifier: Apache-2.0
// quadrille prepare: a checkpoint to a folder that opens as a mapping.
#include <memory>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/load_model.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "model/prepare_folder.h"
#include "session/folder_json.h"

namespace quadrille::cli {
namespace {

struct PrepareArguments {
  ModelOptions model;
  std::string out;
  std::string json;
};

Status run_prepare(Console& console, const PrepareArguments& arguments) {
  ThreadPool pool(arguments.model.threads);
  model::LoadOptions options;
  options.numerics = arguments.model.numerics_value();
  options.pool = &pool;
  options.run_weight_only_as_fp8 = arguments.model.activations == "fp8";
  options.round_scales = arguments.model.scales == "round";
  options.log = console.log_sink();
  options.cancel = interrupt_flag();
  Progress progress(console, "prepare", "bytes", arguments.model.quiet);
  options.progress = [&progress](const model::LoadProgress& at) {
    progress.update(static_cast<int64_t>(at.bytes_done), static_cast<int64_t>(at.bytes_total), at.module);
  };
  const auto report = model::prepare_folder(arguments.model.folder, arguments.out, options);
  progress.finish();
  if (!report) return report.error();
  for (const std::string& note : report->notes) console.warn(note);
  if (arguments.json != "-") {
    console.print("{}: {} -> {} in {}, for --numerics {}\n", arguments.out,
                  bytes_text(static_cast<double>(report->bytes_in)), bytes_text(static_cast<double>(report->bytes_out)),
                  seconds_text(report->seconds), arguments.model.numerics);
  }
  if (arguments.json.empty()) return {};
  return write_json(console, arguments.json,
                    session::prepare_json(arguments.model.folder, arguments.out, options.numerics, *report));
}

}  // namespace

void add_prepare(CLI::App& program, std::vector<Command>& commands) {
  auto* app =
      program.add_subcommand("prepare", "Make a folder that opens at once: weights as the CPU kernels read them");
  auto arguments = std::make_shared<PrepareArguments>();
  ModelOptions& model = arguments->model;
  app->add_option("MODEL", model.folder, "Folder of the checkpoint")->required()->type_name("");
  app->add_option("OUT", arguments->out, "Folder to make; must not exist")->required()->type_name("");
  app->add_option("--numerics", model.numerics, "Arithmetic that the folder will run in: each has scales of its own")
      ->check(CLI::IsMember({"exact", "vllm"}))
      ->capture_default_str();
  app->add_option("--activations", model.activations,
                  "fp8: take a weight-only (W4A16) checkpoint as W4A8; without it such a checkpoint is refused")
      ->check(CLI::IsMember({"checkpoint", "fp8"}))
      ->capture_default_str();
  app->add_option("--scales", model.scales, "round: round weight scales that bf16 does not hold, and report the error")
      ->check(CLI::IsMember({"keep", "round"}))
      ->capture_default_str();
  app->add_option("--threads", model.threads, "Threads; 0: one for each usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_option("--json", arguments->json, "Write the report as JSON to FILE; '-': stdout, instead of the line")
      ->type_name("FILE");
  app->add_flag("-q,--quiet", model.quiet, "No progress on stderr");
  commands.push_back({app, [arguments](Console& console) { return run_prepare(console, *arguments); }});
}

}  // namespace quadrille::cli
