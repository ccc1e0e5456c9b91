// SPDX-License-Identifier: Apache-2.0
// Error and Result<T>: how the library reports what the outside can cause (files, requests, capacity).
// The library never prints, exits or aborts; our own bugs throw through check.h.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

namespace quadrille {

enum class ErrorCode {
  kInvalidArgument,  // the caller asked for something that has no meaning
  kInvalidData,      // a file or message breaks the rules of its format
  kUnsupported,      // well formed, but outside what this build runs; names the rule and the legal values
  kNotFound,         // a file, tensor or name is missing
  kIo,               // the operating system refused
  kCapacity,         // memory, cache blocks or a stated limit
  kCancelled,        // stopped on request
  kLostRank,         // another rank ended or failed: this one cannot go on
};

const char* error_code_name(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;

  // The same error with "where: " in front, for a caller that knows the file or tensor.
  Error in(std::string_view where) const { return {code, fmt::format("{}: {}", where, message)}; }
};

// make_error(ErrorCode::kNotFound, "{}: no tensor named '{}'", file, name)
template <typename... Args>
Error make_error(ErrorCode code, fmt::format_string<Args...> text, Args&&... args) {
  return Error{code, fmt::format(text, std::forward<Args>(args)...)};
}

// A value or an Error. Test it with operator bool, then use * / -> or error().
template <typename T>
class [[nodiscard]] Result {
 public:
  using value_type = T;
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

// Result<void> is called Status.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};
using Status = Result<void>;

#define QD_CONCAT_INNER(a, b) a##b
#define QD_CONCAT(a, b) QD_CONCAT_INNER(a, b)

// QD_TRY(auto x, f()): x = the value of f(), or return its error from this function.
#define QD_TRY(declaration, expression)                                           \
  auto QD_CONCAT(qd_try_, __LINE__) = (expression);                               \
  if (!QD_CONCAT(qd_try_, __LINE__)) return QD_CONCAT(qd_try_, __LINE__).error(); \
  declaration = std::move(QD_CONCAT(qd_try_, __LINE__)).value() /* NOLINT(bugprone-macro-parentheses) */

// QD_TRY_STATUS(f()): return the error of f(), if any.
#define QD_TRY_STATUS(expression) \
  if (auto qd_status = (expression); !qd_status) return qd_status.error()

}  // namespace quadrille
