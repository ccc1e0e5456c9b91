// SPDX-License-Identifier: Apache-2.0
// hopper_bench gemm|layer|ranks|tp|ep [--tiles] [--burst] [--only NAME] [--rows 1,16] [--vllm] [--group G] [--tp N]
// [--ep N]: times of the grouped product and of the MoE layer on this GPU, beside the roof and the best peers; of
// reductions between all GPUs here; of the layer over N tensor-parallel or expert-parallel ranks. docs/benchmarks.md
// keeps what it printed.
#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "bench/device/rows.h"
#include "bench/device/timing.h"

namespace {

using quadrille::bench::BenchOptions;

bool parse(int count, char** words, BenchOptions* options) {
  for (int i = 0; i < count; ++i) {
    const std::string word = words[i];
    const bool more = i + 1 < count;
    if (word == "--tiles") {
      options->all_tiles = true;
    } else if (word == "--burst") {
      options->sustained = false;
    } else if (word == "--vllm") {
      options->numerics = quadrille::kernels::Numerics::kVllm;
    } else if (word == "--only" && more) {
      options->only = words[++i];
    } else if (word == "--group" && more) {
      options->group_size = std::stoll(words[++i]);
    } else if (word == "--tp" && more) {
      options->tensor_ranks = std::stoi(words[++i]);
    } else if (word == "--ep" && more) {
      options->expert_ranks = std::stoi(words[++i]);
    } else if (word == "--rows" && more) {
      for (char* part = std::strtok(words[++i], ","); part != nullptr; part = std::strtok(nullptr, ",")) {
        options->rows.push_back(std::stoll(part));
      }
    } else {
      fmt::print(stderr, "unknown option '{}'\n", word);
      return false;
    }
  }
  return true;
}

int run(const std::string& what, const BenchOptions& options) {
  using namespace quadrille;
  using bench::must;
  if (what == "tp") {
    bench::print_tensor_rows(options);
    return 0;
  }
  if (what == "ep") {
    bench::print_expert_rows(options);
    return 0;
  }
  const auto properties = must(device::properties(0));
  must(device::use(0));
  const auto stream = must(device::OwnedStream::create());
  fmt::print("{}, {} SMs; copy {:.2f} TB/s; numerics {}, group {}\n", properties.name, properties.num_sms,
             bench::copy_bytes_per_second(stream.get()) * 1e-12,
             options.numerics == kernels::Numerics::kVllm ? "vllm" : "exact", options.group_size);
  const auto* table = must(kernels::device_table());
  if (what == "gemm") {
    bench::print_gemm_rows(*table, stream.get(), options);
  } else if (what == "ranks") {
    bench::print_rank_rows();
  } else {
    bench::print_layer_rows(*table, stream.get(), options);
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  BenchOptions options;
  const std::string what = count > 1 ? words[1] : "";
  const bool known = what == "gemm" || what == "layer" || what == "ranks" || what == "tp" || what == "ep";
  if (!known || !parse(count - 2, words + 2, &options)) {
    fmt::print(stderr,
               "usage: hopper_bench gemm|layer|ranks|tp|ep [--tiles] [--burst] [--only NAME] [--rows 1,16] [--vllm] "
               "[--group G] [--tp N] [--ep N]\n");
    return 2;
  }
  if (const auto ok = quadrille::device::available(); !ok) {
    fmt::print(stderr, "hopper_bench: {}\n", ok.error().message);
    return 3;
  }
  try {
    return run(what, options);
  } catch (const std::exception& failure) {
    fmt::print(stderr, "hopper_bench: {}\n", failure.what());
    return 1;
  }
}
