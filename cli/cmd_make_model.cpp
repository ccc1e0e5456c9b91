// SPDX-License-Identifier: Apache-2.0
// quadrille make-model: a W4A8 folder of random weights in a model's true shape, out of a seed.
#include <memory>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "model/random_folder.h"
#include "plan/known_shapes.h"

namespace quadrille::cli {
namespace {

struct MakeModelArguments {
  std::string out;
  std::string shape, config;
  int64_t layers = 0, vocabulary = 0;
  uint64_t seed = 1;
  std::string group_size = "128";
  int64_t shard_mib = 4096;
  int threads = 0;
  std::string json;
  bool quiet = false;
};

Result<formats::Json> read_config(const MakeModelArguments& arguments) {
  QD_TRY(formats::Json config,
         arguments.config.empty() ? plan::shape_json(arguments.shape) : formats::parse_json_file(arguments.config, {}));
  if (!config.is_object()) {
    return make_error(ErrorCode::kInvalidData, "{}: expected a JSON object, found {}", arguments.config,
                      formats::json_excerpt(config));
  }
  plan::set_size(arguments.layers, arguments.vocabulary, &config);
  return config;
}

Status run_make_model(Console& console, const MakeModelArguments& arguments) {
  if (arguments.shape.empty() == arguments.config.empty()) {
    throw CLI::ValidationError("--shape", "give --shape NAME or --config FILE, one of the two");
  }
  QD_TRY(const formats::Json config, read_config(arguments));
  ThreadPool pool(arguments.threads);
  model::RandomFolderOptions options;
  options.seed = arguments.seed;
  options.group_size = arguments.group_size == "channel" ? 0 : std::stoll(arguments.group_size);
  options.shard_bytes = static_cast<uint64_t>(arguments.shard_mib) << 20;
  options.pool = &pool;
  options.cancel = interrupt_flag();
  Progress progress(console, "make-model", "bytes", arguments.quiet);
  options.progress = [&progress](uint64_t done, uint64_t total, const std::string& module) {
    progress.update(static_cast<int64_t>(done), static_cast<int64_t>(total), module);
  };
  const std::string where = arguments.config.empty() ? arguments.shape : arguments.config;
  const auto report = model::write_random_folder(config, where, arguments.out, options);
  progress.finish();
  if (!report) return report.error();
  if (arguments.json != "-") {
    console.print("{}: {} in {} tensors and {} files, seed {}, in {}\n", arguments.out,
                  bytes_text(static_cast<double>(report->bytes)), report->num_tensors, report->files.size(),
                  arguments.seed, seconds_text(report->seconds));
  }
  if (arguments.json.empty()) return {};
  return write_json(console, arguments.json,
                    {{"out", arguments.out},
                     {"seed", arguments.seed},
                     {"group_size", arguments.group_size},
                     {"files", report->files},
                     {"tensors", report->num_tensors},
                     {"bytes", report->bytes},
                     {"seconds", report->seconds}});
}

}  // namespace

void add_make_model(CLI::App& program, std::vector<Command>& commands) {
  auto* app = program.add_subcommand("make-model", "Make a W4A8 checkpoint of random weights in a model's true shape");
  auto arguments = std::make_shared<MakeModelArguments>();
  app->add_option("OUT", arguments->out, "Folder to make; must not exist")->required()->type_name("");
  app->add_option("--shape", arguments->shape, "Shape of a published model")
      ->check(CLI::IsMember(plan::bench_shape_names()));
  app->add_option("--config", arguments->config, "Or the config.json of a model")->type_name("FILE");
  app->add_option("--layers", arguments->layers, "Its first layers alone; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--vocabulary", arguments->vocabulary, "Its first tokens alone; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app->add_option("--seed", arguments->seed, "The numbers; the same seed makes the same bytes")->capture_default_str();
  app->add_option("--group-size", arguments->group_size, "Weights that share a scale")
      ->check(CLI::IsMember({"32", "64", "128", "channel"}))
      ->capture_default_str();
  app->add_option("--shard-mib", arguments->shard_mib, "Most of a file, in MiB")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app->add_option("--threads", arguments->threads, "Threads; 0: one for each usable core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_option("--json", arguments->json, "Write the report as JSON to FILE; '-': stdout, instead of the line")
      ->type_name("FILE");
  app->add_flag("-q,--quiet", arguments->quiet, "No progress on stderr");
  commands.push_back({app, [arguments](Console& console) { return run_make_model(console, *arguments); }});
}

}  // namespace quadrille::cli
