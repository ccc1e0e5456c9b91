// SPDX-License-Identifier: Apache-2.0
#include "core/result.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "core/check.h"

namespace quadrille {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return make_error(ErrorCode::kInvalidArgument, "expected an even number, found {}", value);
  return value / 2;
}

Result<int> quarter(int value) {
  QD_TRY(const int once, half(value));
  QD_TRY(const int twice, half(once));
  return twice;
}

Status is_quarter(int value) {
  QD_TRY_STATUS([&]() -> Status {
    if (!quarter(value)) return quarter(value).error().in("outer");
    return {};
  }());
  return {};
}

TEST(Result, CarriesValuesAndErrors) {
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(6).error().message, "expected an even number, found 3");
  EXPECT_EQ(is_quarter(6).error().message, "outer: expected an even number, found 3");
  EXPECT_TRUE(is_quarter(8).ok());
}

TEST(Result, HoldsWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(7);
  std::unique_ptr<int> moved = std::move(result).value();
  EXPECT_EQ(*moved, 7);
}

TEST(Check, ThrowsWithExpressionTextAndPlace) {
  try {
    QD_CHECK(1 + 1 == 3, "arithmetic");
    FAIL() << "the check did not throw";
  } catch (const CheckFailure& failure) {
    EXPECT_THAT(failure.what(), ::testing::HasSubstr("1 + 1 == 3"));
    EXPECT_THAT(failure.what(), ::testing::HasSubstr("arithmetic"));
    EXPECT_THAT(failure.what(), ::testing::HasSubstr("result_test.cpp"));
  }
}

}  // namespace
}  // namespace quadrille
