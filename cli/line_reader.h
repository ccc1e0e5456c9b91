// SPDX-License-Identifier: Apache-2.0
// Lines from stdin that a Ctrl-C can interrupt; used by chat and by the line-wise commands.
#pragma once

#include <cstddef>
#include <string>

#include "core/result.h"

namespace quadrille::cli {

class LineReader {
 public:
  enum class Outcome { kLine, kEnd, kInterrupted };

  explicit LineReader(int descriptor = 0) : descriptor_(descriptor) {}

  // The next line without its end ("\n" or "\r\n"); the last one may lack it. Errors: kIo, kCapacity for a line above
  // 256 MiB.
  Result<Outcome> next(std::string* line);

 private:
  int descriptor_;
  std::string buffer_;
  size_t start_ = 0;  // of what is not handed out yet
  bool at_end_ = false;
};

// All of a descriptor (a prompt on stdin). Errors: kIo, kCapacity above 256 MiB, kCancelled.
Result<std::string> read_all(int descriptor);

}  // namespace quadrille::cli
