// SPDX-License-Identifier: Apache-2.0
// Handlers without SA_RESTART, so that a read from the terminal returns when Ctrl-C comes.
#include "cli/signals.h"

#include <signal.h>
#include <unistd.h>

namespace quadrille::cli {
namespace {

// The one process-wide state of the program: a signal handler can reach nothing else.
std::atomic<bool> stop_requested{false};
std::atomic<bool> term_received{false};
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_stop_signal(int signal) {
  if (signal == SIGTERM) term_received.store(true);
  if (stop_requested.exchange(true)) ::_exit(130);
}

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
  stop_requested.store(false);
}

Error interrupted_error(std::string_view what) {
  return make_error(ErrorCode::kCancelled, "{}: stopped on request", what);
}

}  // namespace quadrille::cli
