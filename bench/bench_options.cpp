// SPDX-License-Identifier: Apache-2.0
#include "bench/bench_options.h"

#include <algorithm>
#include <cstdlib>

#include "core/topology.h"

namespace quadrille::bench {
namespace {

template <typename Number>
std::vector<Number> numbers(const std::string& text) {
  std::vector<Number> all;
  for (size_t at = 0; at < text.size(); at = std::min(text.find(',', at), text.size() - 1) + 1) {
    all.push_back(static_cast<Number>(std::atoll(text.c_str() + at)));
  }
  return all;
}

bool take(const std::string& name, const std::string& value, BenchOptions* options) {
  if (name == "--kernels") {
    options->table = value;
  } else if (name == "--threads") {
    options->threads = numbers<int>(value);
  } else if (name == "--rounds") {
    options->rounds = std::max(1, std::atoi(value.c_str()));
  } else if (name == "--rows" || name == "--tokens") {
    options->rows = numbers<int64_t>(value);
  } else if (name == "--only") {
    options->only = value;
  } else if (name == "--json") {
    options->json = value;
  } else if (name == "--clock" && (value == "core" || value == "wall")) {
    options->clock = value == "core" ? core_seconds : wall_seconds;
  } else {
    return false;
  }
  return true;
}

}  // namespace

const char* const kBenchUsage =
    "quadrille_bench [layer] [--kernels NAME] [--threads N,..] [--rounds N] [--rows N,..] [--only TEXT] [--json FILE]\n"
    "                [--clock wall|core] [--profile]\n"
    "  layer      the whole MoE layer of Qwen3-30B-A3B instead of single products\n"
    "  --threads  default: one a core, and one\n"
    "  --rows     only products with that many rows an expert, layers with that many tokens\n"
    "  --only     only products whose name holds the text\n"
    "  --json     every line and requirement as a line of JSON\n"
    "  --clock    core: the time this process had a core, for one thread on a busy machine\n"
    "  --profile  of the layer: where its time goes\n";

bool BenchOptions::wants(int64_t number) const {
  return rows.empty() || std::find(rows.begin(), rows.end(), number) != rows.end();
}

bool parse_options(int argc, char** argv, BenchOptions* options) {
  int i = 1;
  if (argc > 1 && std::string(argv[1]) == "layer") options->layer = true, ++i;
  while (i < argc) {
    const std::string name = argv[i++];
    if (name == "--profile") {
      options->profile = true;
      continue;
    }
    if (i >= argc || !take(name, argv[i++], options)) return false;
  }
  const auto bad = [](auto number) { return number < 1; };
  if (std::any_of(options->threads.begin(), options->threads.end(), bad)) return false;
  if (std::any_of(options->rows.begin(), options->rows.end(), bad)) return false;
  if (options->threads.empty()) {
    options->threads.push_back(usable_cores());
    if (usable_cores() > 1) options->threads.push_back(1);
  }
  return true;
}

}  // namespace quadrille::bench
