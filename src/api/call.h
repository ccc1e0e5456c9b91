// SPDX-License-Identifier: Apache-2.0
// The border of the C functions: no exception crosses it, every error becomes a status and a message.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string_view>

#include "core/result.h"
#include "quadrille/c_api.h"

namespace quadrille::api {

constexpr qd_result status_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return QD_INVALID_ARGUMENT;
    case ErrorCode::kInvalidData:
      return QD_INVALID_DATA;
    case ErrorCode::kUnsupported:
      return QD_UNSUPPORTED;
    case ErrorCode::kNotFound:
      return QD_NOT_FOUND;
    case ErrorCode::kIo:
      return QD_IO;
    case ErrorCode::kCapacity:
      return QD_CAPACITY;
    case ErrorCode::kCancelled:
    case ErrorCode::kLostRank:
      return QD_CANCELLED;
  }
  return QD_INTERNAL;
}

// The message cut to the struct, always ended.
inline qd_result report(qd_error* error, qd_result code, std::string_view message) noexcept {
  if (error == nullptr) return code;
  error->code = code;
  const size_t length = std::min(message.size(), sizeof error->message - 1);
  std::memcpy(error->message, message.data(), length);
  error->message[length] = '\0';
  return code;
}

// Runs `body` -> Status.
template <typename Body>
qd_result guarded(qd_error* error, Body&& body) noexcept {
  try {
    const Status status = body();
    if (status) return report(error, QD_OK, "");
    return report(error, status_of(status.error().code), status.error().message);
  } catch (const std::bad_alloc&) {
    return report(error, QD_CAPACITY, "no host memory left");
  } catch (const std::exception& failure) {
    return report(error, QD_INTERNAL, failure.what());
  } catch (...) {
    return report(error, QD_INTERNAL, "an unknown exception");
  }
}

// A struct of the caller, made by this release's init function.
template <typename Struct>
Status check_struct(const Struct* given, const char* name) {
  if (given == nullptr) return make_error(ErrorCode::kInvalidArgument, "{}: a null pointer", name);
  if (given->struct_size == sizeof(Struct)) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "{}: expected struct_size {}, found {}: fill it with {}_init of the header of this release", name,
                    sizeof(Struct), given->struct_size, name);
}

inline Status check_given(const void* pointer, const char* name) {
  if (pointer != nullptr) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: a null pointer", name);
}

}  // namespace quadrille::api
