// SPDX-License-Identifier: Apache-2.0
// Who is asked before experts compute: weights in a mapped file are checked when they are used first. Called by
// layer.h.
#pragma once

#include <cstdint>
#include <span>

#include "core/result.h"

namespace quadrille::moe {

class ExpertGuard {
 public:
  virtual ~ExpertGuard() = default;
  // Expert e has rows offsets[e] .. offsets[e + 1] - 1 of the coming products. An error ends the step.
  virtual Status before_use(std::span<const int64_t> offsets) = 0;
};

}  // namespace quadrille::moe
