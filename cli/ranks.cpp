// SPDX-License-Identifier: Apache-2.0
#include "cli/ranks.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

#include "cli/program.h"
#include "cli/rank_grid.h"
#include "cli/signals.h"
#include "core/topology.h"
#include "device/device.h"
#include "layout/shard_plan.h"
#include "parallel/launch.h"
#include "parallel/open.h"
#include "parallel/run_rank.h"
#include "parallel/thread_group.h"

namespace quadrille::cli {
namespace {

// How long the ranks of this process, or one rank of a launch, may take to end once one is lost or a stop was asked
// for. mpirun kills a second after its SIGTERM.
constexpr std::chrono::milliseconds kEndTime{5000};
constexpr std::chrono::milliseconds kEndTimeUnderMpirun{500};

int failure_code() {
  return interrupted() ? kExitInterrupted : kExitFailure;
}

// Any thread; what the others are doing does not matter. A progress bar on the line is wiped.
[[noreturn]] void end_process(std::string_view line) {
  const std::string text = fmt::format("{}quadrille: {}\n", ::isatty(STDERR_FILENO) == 1 ? "\r\033[K" : "", line);
  if (::write(STDERR_FILENO, text.data(), text.size()) < 0) ::_exit(failure_code());
  ::_exit(failure_code());
}

// Rank r of a host takes GPU N + r: they are all there before anything is loaded.
Status check_gpus(const ModelOptions& options, int ranks_here) {
  if (!options.on_gpu() || ranks_here == 1) return {};
  const int first = options.gpu_ordinal();
  QD_TRY_STATUS(device::available(first));
  QD_TRY(const int there, device::count());
  if (first + ranks_here <= there) return {};
  return make_error(
      ErrorCode::kUnsupported,
      "{} ranks on this host with --device {}: expected GPUs {} to {}, one a rank, found {} GPU{}: ask for "
      "fewer ranks (--tp), or run with '--device cpu'",
      ranks_here, options.device, first, first + ranks_here - 1, there, there == 1 ? "" : "s");
}

Status run_threads(Console& console, const ModelOptions& options, const RankBody& body) {
  QD_TRY_STATUS(check_gpus(options, num_ranks(options)));
  QD_TRY(const int cores, cores_of_choice(options.numa_value()));
  const int threads = options.threads > 0 ? options.threads : cores;
  const auto run = [&](parallel::Communicator& communicator) {
    ModelOptions own = options;
    own.threads = std::max(1, threads / num_ranks(options));
    own.local_rank = communicator.rank();
    return run_in_grid(communicator, own, [&](const ModelOptions& in_grid) {
      if (communicator.rank() == 0) return body(console, in_grid);
      Console silent;
      silent.mute();
      return body(silent, in_grid);
    });
  };
  // Ranks in collectives come back at once; one that is blocked elsewhere must not keep the process.
  std::jthread limit;
  return parallel::run_rank_threads(num_ranks(options), run, [&limit](const parallel::LostRank& lost) {
    limit = std::jthread([lost](const std::stop_token& stop) {
      std::mutex mutex;
      std::condition_variable_any ended;
      std::unique_lock lock(mutex);
      ended.wait_for(lock, stop, kEndTime, [] { return false; });
      if (!stop.stop_requested()) end_process(lost.text() + "; the other ranks did not end in time");
    });
  });
}

// What the main thread of one rank of a launch, the thread that watches the others and the one that answers signals
// know of each other.
struct RankProcess {
  int rank = 0, size = 1;
  // Set before this rank says itself that it fails: it then ends by the ordinary way.
  std::atomic<bool> ends_by_itself{false};
  std::mutex mutex;
  parallel::Communicator* communicator = nullptr;  // while it lives
};

// The last words of a rank that was told to stop and could not in time.
[[noreturn]] void end_at_signal(RankProcess& process, int signal) {
  const char* name = signal == SIGTERM ? "SIGTERM" : "SIGINT";
  parallel::Phase phase = parallel::Phase::kStart;
  const std::scoped_lock lock(process.mutex);
  process.ends_by_itself.store(true);
  if (process.communicator != nullptr) {
    phase = process.communicator->phase();
    process.communicator->fail(fmt::format("it was ended by {}", name));
  }
  end_process(fmt::format("rank {} of {} ended by {} in phase {}: it could not stop in order in time", process.rank,
                          process.size, name, parallel::phase_name(phase)));
}

// One rank of a launch.
Status run_process(Console& console, const ModelOptions& options, const parallel::Launch& launch,
                   const RankBody& body) {
  const auto process = std::make_shared<RankProcess>();
  process->rank = launch.rank;
  process->size = launch.size;
  const auto end_time = launch.launcher == parallel::Launcher::kOpenMpi ? kEndTimeUnderMpirun : kEndTime;
  const StopDeadline deadline(end_time, [process](int signal) { end_at_signal(*process, signal); });
  parallel::OpenOptions open;
  open.timeout = std::chrono::seconds(options.rank_timeout);
  open.on_lost = [process](const parallel::LostRank& lost) {
    if (!process->ends_by_itself.load()) end_process(lost.text());
  };
  QD_TRY(const std::unique_ptr<parallel::Communicator> communicator, parallel::open_communicator(launch, open));
  const auto show = [&process](parallel::Communicator* now) {
    const std::scoped_lock lock(process->mutex);
    process->communicator = now;
  };
  show(communicator.get());
  parallel::RankRun run;
  run.body = [&](parallel::Communicator& ranks) -> Status {
    QD_TRY_STATUS(check_gpus(options, launch.local_size));
    if (launch.rank != 0) console.mute();
    ModelOptions own = options;
    own.local_rank = launch.local_rank;
    return run_in_grid(ranks, own, [&](const ModelOptions& in_grid) { return body(console, in_grid); });
  };
  run.before_fail = [&process] { process->ends_by_itself.store(true); };
  run.is_shared = [](const Error& error) { return error.code == ErrorCode::kCancelled && agreed_to_stop(); };
  const Status done = parallel::run_rank(*communicator, run);
  show(nullptr);
  console.unmute();
  return done;
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
  app.add_option("--rank-timeout", options.rank_timeout,
                 "Seconds that ranks in several processes wait at the start until all have come")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str();
}

Status run_on_ranks(Console& console, const ModelOptions& options, const RankBody& body) {
  QD_TRY(const parallel::Launch launch, parallel::detect_launch());
  if (launch.size == 1) return num_ranks(options) == 1 ? body(console, options) : run_threads(console, options, body);
  QD_TRY(ModelOptions fitted, fit_launch(options, launch));
  if (fitted.threads == 0) {
    fitted.threads = parallel::share_of_cores(usable_cores(), cores_of_parent(), launch.local_size);
  }
  return run_process(console, fitted, launch, body);
}

bool any_rank(parallel::Communicator* ranks, bool mine) {
  if (ranks == nullptr || ranks->size() == 1) return mine;
  float vote = !mine ? 0.0f : interrupted() ? 2.0f : 1.0f;
  if (!ranks->all_reduce_max({&vote, 1})) return true;
  if (vote > 1) agree_to_stop();
  return vote > 0;
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
