// SPDX-License-Identifier: Apache-2.0
// quadrille quantize: a folder in bf16, f16 or f32 to a W4A8 folder that the field's loaders read.
#include <memory>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "cli/text_table.h"
#include "quantize/folder.h"
#include "session/folder_json.h"

namespace quadrille::cli {
namespace {

struct QuantizeArguments {
  std::string in, out;
  std::string group_size = "128";
  std::string quotient = "f32";
  std::vector<std::string> ignore;
  int threads = 0;
  std::string json;
  bool quiet = false;
};

std::vector<std::string> error_row(const std::string& name, int64_t tensors, const quantize::ErrorSums& sums) {
  const double clipped = sums.count == 0 ? 0 : static_cast<double>(sums.clipped) / static_cast<double>(sums.count);
  return {name,
          std::to_string(tensors),
          std::to_string(sums.count),
          fmt::format("{:.2f} %", 100 * sums.relative_rms()),
          fmt::format("{:.3g}", sums.max_error),
          fmt::format("{:.4f} %", 100 * clipped)};
}

void print_report(Console& console, const QuantizeArguments& arguments, const quantize::QuantizeReport& report) {
  std::map<std::string, int64_t> counts;
  for (const quantize::TensorError& tensor : report.errors.tensors) ++counts[tensor.kind];
  TextTable table({"kind", ">tensors", ">weights", ">relative rms error", ">largest error", ">clipped"});
  for (const auto& [kind, sums] : report.errors.by_kind()) table.add_row(error_row(kind, counts[kind], sums));
  table.add_row(error_row("all", static_cast<int64_t>(report.errors.tensors.size()), report.errors.total()));
  console.write(table.text());
  console.print("Left as they were: {} matrices\n", report.left_alone.size());
  std::map<std::string, int64_t> rules;
  for (const std::string& entry : report.left_alone) {
    const size_t rule = entry.find(" (");
    ++rules[rule == std::string::npos ? entry : entry.substr(rule + 1)];
  }
  for (const auto& [rule, count] : rules) console.print("  {:5} {}\n", count, rule);
  console.print("{}: {} -> {} in {}\n", arguments.out, bytes_text(static_cast<double>(report.bytes_in)),
                bytes_text(static_cast<double>(report.bytes_out)), seconds_text(report.seconds));
}

Status run_quantize(Console& console, const QuantizeArguments& arguments) {
  quantize::QuantizeOptions options;
  options.group_size = arguments.group_size == "channel" ? 0 : std::stoll(arguments.group_size);
  options.quotient = arguments.quotient == "bf16" ? quantize::Quotient::kBf16 : quantize::Quotient::kF32;
  options.ignore = arguments.ignore;
  options.threads = arguments.threads;
  options.log = console.log_sink();
  Progress progress(console, "quantize", "bytes", arguments.quiet);
  const auto on_progress = [&progress](const quantize::QuantizeProgress& at) {
    progress.update(static_cast<int64_t>(at.bytes_done), static_cast<int64_t>(at.bytes_total), at.tensor);
  };
  const auto report = quantize::quantize_folder(arguments.in, arguments.out, options, on_progress, interrupt_flag());
  progress.finish();
  if (!report) return report.error();
  if (arguments.json != "-") print_report(console, arguments, *report);
  if (!arguments.json.empty())
    return write_json(console, arguments.json, session::quantize_json(arguments.in, arguments.out, options, *report));
  return {};
}

}  // namespace

void add_quantize(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("quantize", "Make a W4A8 checkpoint from an unquantised one");
  auto arguments = std::make_shared<QuantizeArguments>();
  app->add_option("IN", arguments->in, "Folder of the unquantised checkpoint")->required()->type_name("");
  app->add_option("OUT", arguments->out, "Folder to make; must not exist")->required()->type_name("");
  app->add_option("--group-size", arguments->group_size, "Weights that share a scale")
      ->check(CLI::IsMember({"32", "64", "128", "channel"}))
      ->capture_default_str();
  app->add_option("--quotient", arguments->quotient,
                  "How weight / scale is rounded first: f32 as the field's library does on a GPU, bf16 as on a CPU")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app->add_option("--ignore", arguments->ignore,
                  "Leave these modules alone too: 're:REGEX' or a module path (may be given several times)")
      ->type_name("PATTERN")
      ->take_all();
  app->add_option("--threads", arguments->threads, "Threads; 0: one for each usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_option("--json", arguments->json, "Write the report as JSON to FILE; '-': stdout, instead of the table")
      ->type_name("FILE");
  app->add_flag("-q,--quiet", arguments->quiet, "No progress on stderr");
  commands.push_back({app, [arguments](Console& console) { return run_quantize(console, *arguments); }});
}

}  // namespace quadrille::cli
