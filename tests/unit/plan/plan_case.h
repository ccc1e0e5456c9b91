// SPDX-License-Identifier: Apache-2.0
// Named shapes for the tests of the plan.
#pragma once

#include <gtest/gtest.h>

#include "plan/known_shapes.h"
#include "plan/shape.h"

namespace quadrille::plan {

inline PlanShape named_plan_shape(const std::string& name, std::optional<int64_t> group = {}) {
  const auto raw = named_shape(name);
  EXPECT_TRUE(raw) << (raw ? "" : raw.error().message);
  auto shape = make_plan_shape(name, *raw, {group});
  EXPECT_TRUE(shape) << (shape ? "" : shape.error().message);
  return std::move(*shape);
}

}  // namespace quadrille::plan
