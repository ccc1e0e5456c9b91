// SPDX-License-Identifier: Apache-2.0
// Ctrl-C and SIGTERM ask a command to stop: they set a flag that long loops read. The second one ends the process at
// once. SIGPIPE is ignored: a closed pipe is an error of write().
#pragma once

#include <atomic>

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

}  // namespace quadrille::cli
