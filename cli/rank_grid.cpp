// SPDX-License-Identifier: Apache-2.0
#include "cli/rank_grid.h"

#include <memory>

namespace quadrille::cli {
void add_grid_options(CLI::App& app, ModelOptions& options) {
  app.add_option("--ep", options.ep,
                 "Expert-parallel ranks: each holds a part of the experts and computes a part of a step's tokens; with "
                 "--tp a grid of both")
      ->check(CLI::Range(1, kMaxExpertRanks))
      ->capture_default_str();
}

int num_ranks(const ModelOptions& options) {
  return options.tp * options.ep;
}

Result<ModelOptions> fit_launch(const ModelOptions& options, const parallel::Launch& launch) {
  ModelOptions fitted = options;
  if (options.tp == 1 && launch.size % options.ep == 0) fitted.tp = launch.size / options.ep;
  if (num_ranks(fitted) == launch.size) return fitted;
  const char* launcher = parallel::launcher_name(launch.launcher);
  if (options.ep == 1) {
    return make_error(ErrorCode::kInvalidArgument,
                      "--tp {}: {} started {} processes, and each is one rank; leave --tp out, or say --tp {}",
                      options.tp, launcher, launch.size, launch.size);
  }
  return make_error(
      ErrorCode::kInvalidArgument,
      "--tp {} --ep {}: {} started {} processes, and each is one rank; expected {} of them, or a --tp and "
      "--ep whose product is {}",
      options.tp, options.ep, launcher, launch.size, num_ranks(options), launch.size);
}

Status run_in_grid(parallel::Communicator& all, const ModelOptions& options,
                   const std::function<Status(const ModelOptions&)>& body) {
  ModelOptions own = options;
  own.ranks = &all;
  if (options.ep == 1) return body(own);
  QD_TRY(const std::unique_ptr<parallel::Communicator> tensor, all.split(all.rank() / options.tp));
  QD_TRY(const std::unique_ptr<parallel::Communicator> expert, all.split(all.rank() % options.tp));
  own.tensor_ranks = tensor.get();
  own.expert_ranks = expert.get();
  return body(own);
}

}  // namespace quadrille::cli
