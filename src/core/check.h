// SPDX-License-Identifier: Apache-2.0
// QD_CHECK: a broken invariant of our own. Throws with expression, text and place in every build.
// What a file, request or user can cause is a Result (result.h), never a check.
#pragma once

#include <stdexcept>
#include <string>

namespace quadrille {

class CheckFailure : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void check_failed(const char* expression, const char* file, int line, const std::string& text);

}  // namespace quadrille

#define QD_CHECK(condition, text)                                                        \
  do {                                                                                   \
    if (!(condition)) ::quadrille::check_failed(#condition, __FILE__, __LINE__, (text)); \
  } while (0)
