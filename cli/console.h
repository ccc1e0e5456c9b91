// SPDX-License-Identifier: Apache-2.0
// Where a command writes: results to stdout (noticing a reader that went away), everything else to stderr. Every
// command gets one; nothing else in the program touches the two descriptors.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

#include "core/log.h"
#include "core/result.h"

namespace quadrille::cli {

class Console {
 public:
  Console();

  // Appends to stdout. Buffered; flush() after each piece that a person waits for. After the reader closed the pipe
  // everything is dropped and closed() is true: a command should then stop, quietly.
  void write(std::string_view text);
  template <typename... Args>
  void print(fmt::format_string<Args...> text, Args&&... args) {
    write(fmt::format(text, std::forward<Args>(args)...));
  }
  void flush();
  bool closed() const { return closed_; }
  // Flushes; an error when stdout took less than was written (a full disk). A closed pipe is no error.
  Status finish();

  // Drops everything from now on: ranks above 0.
  void mute() { muted_ = true; }
  void unmute() { muted_ = false; }
  bool muted() const { return muted_; }

  // One line to stderr. A progress bar that is on the line is wiped first.
  void note(std::string_view line);
  void warn(std::string_view text) { note(fmt::format("quadrille: warning: {}", text)); }
  void error(std::string_view text) { note(fmt::format("quadrille: {}", text)); }
  // Replaces the last line of the terminal on stderr; "" wipes it. Only where stderr_is_terminal().
  void status_line(std::string_view line);

  bool stdout_is_terminal() const { return stdout_is_terminal_ && !muted_; }
  bool stderr_is_terminal() const { return stderr_is_terminal_ && !muted_; }
  int stderr_columns() const;

  // Hands warnings of the library to warn(); notes too when `verbose`. The console must outlive the sink.
  LogSink log_sink(bool verbose = false);

 private:
  std::string buffer_;
  bool closed_ = false;
  bool muted_ = false;
  int write_errno_ = 0;
  bool has_status_line_ = false;
  bool stdout_is_terminal_ = false;
  bool stderr_is_terminal_ = false;
};

}  // namespace quadrille::cli
