// SPDX-License-Identifier: Apache-2.0
// Reads through the descriptor: iostreams would swallow the interrupted read.
#include "cli/line_reader.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "cli/signals.h"

namespace quadrille::cli {
namespace {

constexpr size_t kMaxBytes = size_t{256} << 20;
constexpr size_t kBlock = size_t{1} << 16;

enum class ReadOutcome { kBytes, kEnd, kInterrupted };

// Appends what one read() gives.
Result<ReadOutcome> read_some(int descriptor, std::string* buffer) {
  if (interrupted()) return ReadOutcome::kInterrupted;
  const size_t size = buffer->size();
  if (size > kMaxBytes) {
    return make_error(ErrorCode::kCapacity, "stdin: more than {} MiB without an end; pass less", kMaxBytes >> 20);
  }
  buffer->resize(size + kBlock);
  const ssize_t count = ::read(descriptor, buffer->data() + size, kBlock);
  const int failed = errno;
  buffer->resize(size + (count > 0 ? static_cast<size_t>(count) : 0));
  if (count > 0) return ReadOutcome::kBytes;
  if (count == 0) return ReadOutcome::kEnd;
  if (failed == EINTR) return interrupted() ? ReadOutcome::kInterrupted : ReadOutcome::kBytes;
  return make_error(ErrorCode::kIo, "stdin: cannot read: {}", std::strerror(failed));
}

}  // namespace

Result<LineReader::Outcome> LineReader::next(std::string* line) {
  size_t searched = start_;
  while (true) {
    size_t end = buffer_.find('\n', searched);
    if (end == std::string::npos && at_end_) {
      if (start_ == buffer_.size()) return Outcome::kEnd;
      end = buffer_.size();
    }
    if (end != std::string::npos) {
      *line = buffer_.substr(start_, end - start_);
      if (!line->empty() && line->back() == '\r') line->pop_back();
      start_ = end < buffer_.size() ? end + 1 : end;
      return Outcome::kLine;
    }
    buffer_.erase(0, start_);
    start_ = 0;
    searched = buffer_.size();
    QD_TRY(const ReadOutcome outcome, read_some(descriptor_, &buffer_));
    if (outcome == ReadOutcome::kInterrupted) return Outcome::kInterrupted;
    if (outcome == ReadOutcome::kEnd) at_end_ = true;
  }
}

Result<std::string> read_all(int descriptor) {
  std::string text;
  while (true) {
    QD_TRY(const ReadOutcome outcome, read_some(descriptor, &text));
    if (outcome == ReadOutcome::kInterrupted) return interrupted_error("reading stdin");
    if (outcome == ReadOutcome::kEnd) return text;
  }
}

}  // namespace quadrille::cli
