// SPDX-License-Identifier: Apache-2.0
#include "core/log.h"

#include "core/check.h"
#include "core/result.h"

namespace quadrille {

LogSink no_log() {
  return [](LogLevel, std::string_view) {};
}

void check_failed(const char* expression, const char* file, int line, const std::string& text) {
  throw CheckFailure(fmt::format("{}:{}: {} does not hold: {}", file, line, expression, text));
}

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kInvalidData:
      return "invalid data";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kNotFound:
      return "not found";
    case ErrorCode::kIo:
      return "i/o";
    case ErrorCode::kCapacity:
      return "capacity";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kLostRank:
      return "lost rank";
  }
  return "unknown";
}

}  // namespace quadrille
