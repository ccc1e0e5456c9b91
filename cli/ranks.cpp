// SPDX-License-Identifier: Apache-2.0
#include "cli/ranks.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>

#include "cli/program.h"
#include "core/topology.h"
#include "layout/shard_plan.h"
#include "parallel/launch.h"
#include "parallel/open.h"
#include "parallel/thread_group.h"

namespace quadrille::cli {
namespace {

Status run_threads(Console& console, const ModelOptions& options, const RankBody& body) {
  const int threads = options.threads > 0 ? options.threads : usable_cores();
  return parallel::run_rank_threads(options.tp, [&](parallel::Communicator& communicator) {
    ModelOptions own = options;
    own.ranks = &communicator;
    own.threads = std::max(1, threads / options.tp);
    if (communicator.rank() == 0) return body(console, own);
    Console silent;
    silent.mute();
    return body(silent, own);
  });
}

// One rank of a launch.
Status run_process(Console& console, const ModelOptions& options, const parallel::Launch& launch,
                   const RankBody& body) {
  // Set before this rank says itself that it fails: it then ends by the ordinary way.
  const auto ends_by_itself = std::make_shared<std::atomic<bool>>(false);
  parallel::OpenOptions open;
  open.on_lost = [ends_by_itself](const parallel::LostRank& lost) {
    if (ends_by_itself->load()) return;
    const std::string line = fmt::format("quadrille: {}\n", lost.text());
    if (::write(STDERR_FILENO, line.data(), line.size()) < 0) ::_exit(kExitFailure);
    ::_exit(kExitFailure);
  };
  QD_TRY(const std::unique_ptr<parallel::Communicator> communicator, parallel::open_communicator(launch, open));
  ModelOptions own = options;
  own.tp = launch.size;
  own.ranks = communicator.get();
  if (launch.rank != 0) console.mute();
  Status done = body(console, own);
  if (done) done = communicator->leave();
  if (done) return done;
  ends_by_itself->store(true);
  communicator->fail(done.error().message);
  console.unmute();
  return done.error().in(fmt::format("rank {}", launch.rank));
}

}  // namespace

void add_rank_options(CLI::App& app, ModelOptions& options) {
  app.add_option("--tp", options.tp,
                 "Tensor-parallel ranks, as threads of this process; under mpirun, torchrun and Slurm each process is "
                 "one rank")
      ->check(CLI::Range(1, layout::kMaxRanks))
      ->capture_default_str();
  app.add_option("--split-scales", options.split_scales,
                 "agreed: a row that is split over ranks has the scale of the whole row; local: each rank's own")
      ->check(CLI::IsMember({"agreed", "local"}))
      ->capture_default_str();
}

Status run_on_ranks(Console& console, const ModelOptions& options, const RankBody& body) {
  QD_TRY(const parallel::Launch launch, parallel::detect_launch());
  if (launch.size == 1) return options.tp == 1 ? body(console, options) : run_threads(console, options, body);
  if (options.tp != 1 && options.tp != launch.size) {
    return make_error(ErrorCode::kInvalidArgument,
                      "--tp {}: {} started {} processes, and each is one rank; leave --tp out, or say --tp {}",
                      options.tp, parallel::launcher_name(launch.launcher), launch.size, launch.size);
  }
  return run_process(console, options, launch, body);
}

bool any_rank(parallel::Communicator* ranks, bool mine) {
  if (ranks == nullptr || ranks->size() == 1) return mine;
  float vote = mine ? 1.0f : 0.0f;
  return !ranks->all_reduce_max({&vote, 1}) || vote > 0;
}

Result<std::string> text_of_rank_0(parallel::Communicator* ranks, const std::function<Result<std::string>()>& read) {
  if (ranks == nullptr || ranks->size() == 1) return read();
  std::string text;
  if (ranks->rank() == 0) {
    QD_TRY(text, read());
  }
  uint64_t size = text.size();
  QD_TRY_STATUS(ranks->broadcast(std::as_writable_bytes(std::span(&size, 1)), 0));
  text.resize(size);
  QD_TRY_STATUS(ranks->broadcast(std::as_writable_bytes(std::span(text)), 0));
  return text;
}

}  // namespace quadrille::cli
