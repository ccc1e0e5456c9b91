// SPDX-License-Identifier: Apache-2.0
// Ctrl-C and SIGTERM ask a command to stop: they set a flag that long loops read. The second one ends the process at
// once. SIGPIPE is ignored: a closed pipe is an error of write(). A process that is one rank of several ends by itself
// when it cannot stop in time (StopDeadline).
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "core/result.h"

namespace quadrille::cli {

void install_signal_handlers();

// True since the first Ctrl-C (until clear_interrupt()).
bool interrupted();
// True since the first SIGTERM.
bool terminated();
// The flag itself, for functions that take one.
const std::atomic<bool>* interrupt_flag();
// Forgets a Ctrl-C that has been answered (chat: it stopped one answer).
void clear_interrupt();
// The error that a stopped command returns: kCancelled.
Error interrupted_error(std::string_view what);

// All ranks have heard of the signal at the same step, also those that got none: they stop alike, and in order.
void agree_to_stop();
bool agreed_to_stop();

// While it lives, `overdue(signal)` is called on a thread of its own when the process still runs `grace` after a stop
// signal, whatever the other threads are blocked in; it ends the process. Repeated signals then do nothing: launchers
// send one after the terminal did. One at a time.
class StopDeadline {
 public:
  using Overdue = std::function<void(int signal)>;
  StopDeadline(std::chrono::milliseconds grace, Overdue overdue);
  ~StopDeadline();
  StopDeadline(const StopDeadline&) = delete;
  StopDeadline& operator=(const StopDeadline&) = delete;

 private:
  void wait(const std::stop_token& stop) const;

  std::chrono::milliseconds grace_;
  Overdue overdue_;
  int wake_fd_ = -1;  // written by the handler and by the destructor
  std::jthread thread_;
};

}  // namespace quadrille::cli
