// SPDX-License-Identifier: Apache-2.0
// One rank, as the process tests start it several times: checks every collective, or goes through the phases of a run
// and loses a rank on purpose. Behaves as the program does: the library's on_lost prints the line and ends the process.
//   parallel_ranks check
//   parallel_ranks lose PHASE RANK kill|exit|error|throw waiting|blocked
// LAUNCH_POINT=file, SELF=r, RANKS=n: a meeting point carried through a file instead of the launcher's variables.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "multi/collective_checks.h"
#include "parallel/open.h"

namespace {

using namespace quadrille;
using namespace quadrille::parallel;
using namespace std::chrono_literals;

int own_rank = 0;

void say(const std::string& text) {
  const std::string line = fmt::format("[{}] {}\n", own_rank, text);
  [[maybe_unused]] const auto written = ::write(STDOUT_FILENO, line.data(), line.size());
}

// What a program does with a lost rank: say it, end. mpirun may end this process first (SIGTERM), so the line is also
// printed then, when the loss is known within a moment.
void end_on_loss(const LostRank& lost) {
  say(lost.text());
  ::_exit(3);
}

void print_at_sigterm(const std::shared_ptr<LossState>& loss) {
  std::thread([loss] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    int signal = 0;
    sigwait(&set, &signal);
    if (const auto lost = loss->wait_for(500ms)) say(lost->text());
    ::_exit(4);
  }).detach();
}

Result<std::unique_ptr<Communicator>> open_through_file(const char* file, const OpenOptions& options) {
  const Membership self{std::atoi(std::getenv("SELF")), std::atoi(std::getenv("RANKS"))};
  own_rank = self.rank;
  if (self.rank == 0) {
    QD_TRY(OpenMeeting meeting, open_meeting("127.0.0.1"));
    std::ofstream(std::string(file) + ".tmp") << meeting.point.text();
    std::rename((std::string(file) + ".tmp").c_str(), file);
    return open_tcp(meeting.point, self, std::move(meeting.listener), options);
  }
  std::string text;
  while (text.empty()) {
    std::this_thread::sleep_for(10ms);
    std::ifstream(file) >> text;
  }
  QD_TRY(const MeetingPoint point, MeetingPoint::parse(text));
  return open_tcp(point, self, {}, options);
}

Result<std::unique_ptr<Communicator>> open(const OpenOptions& options) {
  if (const char* file = std::getenv("LAUNCH_POINT")) return open_through_file(file, options);
  QD_TRY(const Launch launch, detect_launch());
  own_rank = launch.rank;
  return open_communicator(launch, options);
}

int fail_with(Communicator* communicator, const Error& error) {
  say(fmt::format("{}: {}", error_code_name(error.code), error.message));
  if (communicator != nullptr) communicator->fail(error.message);
  return 2;
}

int check(Communicator& communicator) {
  uint64_t digest = 0;
  const std::string wrong = multi::check_collectives(communicator, digest);
  if (!wrong.empty()) return fail_with(&communicator, make_error(ErrorCode::kInvalidData, "{}", wrong));
  if (Status left = communicator.leave(); !left) return fail_with(&communicator, left.error());
  say(fmt::format("{} of {} ranks digest {:016x}", communicator.body(), communicator.size(), digest));
  return 0;
}

void end_by(const std::string& how) {
  say("now");
  if (how == "kill") ::raise(SIGKILL);
  if (how == "exit") ::_exit(7);
  if (how == "throw") throw std::runtime_error("a failure on purpose");
}

struct Loss {
  std::string phase;
  int rank = 0;
  std::string how;
  bool blocked = false;  // the others wait outside of any collective
};

// One phase of a run: collectives of small and large size in turn.
Status run_phase(Communicator& communicator, Phase phase, const Loss& loss) {
  communicator.set_phase(phase);
  std::vector<float> small(64, 1.0f), large(200000, 1.0f);
  const bool here = loss.phase == phase_name(phase);
  for (int step = 0; step < (here ? 1000000 : 20); ++step) {
    if (here && step == 10 && communicator.rank() == loss.rank) {
      end_by(loss.how);
      return make_error(ErrorCode::kIo, "an error on purpose");
    }
    if (here && step == 10 && loss.blocked) std::this_thread::sleep_for(120s);
    QD_TRY_STATUS(communicator.all_reduce_sum(small));
    QD_TRY_STATUS(communicator.all_reduce_max(large));
  }
  return {};
}

int lose(Communicator& communicator, const Loss& loss) {
  Status done;
  try {
    for (const Phase phase : {Phase::kLoad, Phase::kPrefill, Phase::kDecode}) {
      done = run_phase(communicator, phase, loss);
      if (!done) return fail_with(&communicator, done.error());
    }
  } catch (const std::exception& thrown) {
    return fail_with(&communicator, make_error(ErrorCode::kIo, "{}", thrown.what()));
  }
  if (Status left = communicator.leave(); !left) return fail_with(&communicator, left.error());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode != "check" && !(mode == "lose" && argc == 6)) {
    std::fprintf(stderr, "usage: parallel_ranks check | lose PHASE RANK kill|exit|error|throw waiting|blocked\n");
    return 64;
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  OpenOptions options;
  if (const char* seconds = std::getenv("OPEN_TIMEOUT_S")) options.timeout = std::chrono::seconds(std::atoi(seconds));
  options.on_lost = end_on_loss;
  auto communicator = open(options);
  if (!communicator) return fail_with(nullptr, communicator.error());
  own_rank = (*communicator)->rank();
  print_at_sigterm((*communicator)->loss());
  if (mode == "check") return check(**communicator);
  return lose(**communicator, {argv[2], std::atoi(argv[3]), argv[4], std::string(argv[5]) == "blocked"});
}
