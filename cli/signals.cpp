// SPDX-License-Identifier: Apache-2.0
// Handlers without SA_RESTART, so that a read from the terminal returns when Ctrl-C comes.
#include "cli/signals.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "core/check.h"

namespace quadrille::cli {
namespace {

// The one process-wide state of the program: a signal handler can reach nothing else.
std::atomic<bool> stop_requested{false};
std::atomic<bool> term_received{false};
std::atomic<bool> stop_agreed{false};
std::atomic<int> last_signal{0};
std::atomic<int> deadline_fd{-1};  // of the StopDeadline that lives; -1: none
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void wake(int fd) {
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(fd, &one, sizeof one);
}

extern "C" void on_stop_signal(int signal) {
  const int kept_errno = errno;
  if (signal == SIGTERM) term_received.store(true);
  last_signal.store(signal);
  const bool again = stop_requested.exchange(true);
  const int fd = deadline_fd.load();
  if (fd >= 0) {
    wake(fd);
  } else if (again) {
    ::_exit(130);
  }
  errno = kept_errno;
}

// Waits until `fd` is written or the time is over. True when it was written.
bool wait_readable(int fd, std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() < 0) return false;
    pollfd polled{fd, POLLIN, 0};
    const int ready = ::poll(&polled, 1, static_cast<int>(left.count()));
    if (ready > 0) return true;
    if (ready == 0) return false;
  }
}

constexpr std::chrono::milliseconds kForGood{1 << 30};

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, nullptr);
}

bool interrupted() {
  return stop_requested.load(std::memory_order_relaxed);
}
bool terminated() {
  return term_received.load();
}
const std::atomic<bool>* interrupt_flag() {
  return &stop_requested;
}
void clear_interrupt() {
  stop_agreed.store(false);
  stop_requested.store(false);
}

Error interrupted_error(std::string_view what) {
  return make_error(ErrorCode::kCancelled, "{}: stopped on request", what);
}

void agree_to_stop() {
  stop_requested.store(true);
  stop_agreed.store(true);
}
bool agreed_to_stop() {
  return stop_agreed.load();
}

StopDeadline::StopDeadline(std::chrono::milliseconds grace, Overdue overdue)
    : grace_(grace), overdue_(std::move(overdue)), wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  QD_CHECK(wake_fd_ >= 0, "no event descriptor: the limit of open files is reached");
  thread_ = std::jthread([this](const std::stop_token& stop) { wait(stop); });
  QD_CHECK(deadline_fd.exchange(wake_fd_) == -1, "one deadline at a time");
  if (interrupted()) wake(wake_fd_);
}

StopDeadline::~StopDeadline() {
  deadline_fd.store(-1);
  thread_.request_stop();
  wake(wake_fd_);
  thread_.join();
  // The descriptor stays: a handler on another thread may be about to write to it.
}

void StopDeadline::wait(const std::stop_token& stop) const {
  // A signal of which nothing came (chat: it stopped one answer) is forgotten at the end of its time.
  while (!stop.stop_requested()) {
    if (!wait_readable(wake_fd_, kForGood)) continue;
    const auto end = std::chrono::steady_clock::now() + grace_;
    while (!stop.stop_requested() && std::chrono::steady_clock::now() < end) {
      uint64_t count = 0;
      [[maybe_unused]] const auto got = ::read(wake_fd_, &count, sizeof count);
      wait_readable(wake_fd_, std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()));
    }
    if (!stop.stop_requested() && interrupted()) overdue_(last_signal.load());
  }
}

}  // namespace quadrille::cli
