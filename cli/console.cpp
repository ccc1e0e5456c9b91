// SPDX-License-Identifier: Apache-2.0
// Writes through the descriptors, so that a closed pipe and a full disk are seen where they happen.
#include "cli/console.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace quadrille::cli {
namespace {

// All bytes, or the errno that stopped them. An interrupted write goes on: the signal's flag is read by the command.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(descriptor, text.data(), text.size());
    if (count >= 0) {
      text.remove_prefix(static_cast<size_t>(count));
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

// A descriptor 0..2 that the caller closed would go to the next file that is opened, and our text into that file.
void reserve_standard_descriptors() {
  int descriptor = 0;
  do {
    descriptor = ::open("/dev/null", O_RDWR);
  } while (descriptor >= 0 && descriptor <= STDERR_FILENO);
  if (descriptor >= 0) ::close(descriptor);
}

}  // namespace

Console::Console() {
  reserve_standard_descriptors();
  stdout_is_terminal_ = ::isatty(STDOUT_FILENO) == 1;
  stderr_is_terminal_ = ::isatty(STDERR_FILENO) == 1;
}

void Console::write(std::string_view text) {
  if (closed_ || muted_ || write_errno_ != 0) return;
  buffer_ += text;
  if (buffer_.size() > (size_t{1} << 16)) flush();
}

void Console::flush() {
  if (buffer_.empty()) return;
  if (has_status_line_) status_line("");
  const int failed = write_all(STDOUT_FILENO, buffer_);
  buffer_.clear();
  if (failed == EPIPE) {
    closed_ = true;
  } else if (failed != 0) {
    write_errno_ = failed;
  }
}

Status Console::finish() {
  flush();
  if (has_status_line_) status_line("");
  if (write_errno_ == 0) return {};
  return make_error(ErrorCode::kIo, "stdout: cannot write: {}; the output is not complete",
                    std::strerror(write_errno_));
}

void Console::note(std::string_view line) {
  if (muted_) return;
  if (has_status_line_) status_line("");
  write_all(STDERR_FILENO, fmt::format("{}\n", line));
}

void Console::status_line(std::string_view line) {
  if (muted_) return;
  write_all(STDERR_FILENO, fmt::format("\r\033[K{}", line));
  has_status_line_ = !line.empty();
}

int Console::stderr_columns() const {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

LogSink Console::log_sink(bool verbose) {
  return [this, verbose](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) {
      warn(text);
    } else if (verbose) {
      note(text);
    }
  };
}

}  // namespace quadrille::cli
