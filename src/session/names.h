// SPDX-License-Identifier: Apache-2.0
// The names that options, reports and JSON give to the choices of an arithmetic.
#pragma once

#include "kernels/api/problems.h"

namespace quadrille::session {

constexpr const char* numerics_name(kernels::Numerics numerics) {
  return numerics == kernels::Numerics::kVllm ? "vllm" : "exact";
}

constexpr const char* rounding_name(kernels::Rounding rounding) {
  return rounding == kernels::Rounding::kF32 ? "f32" : "bf16";
}

}  // namespace quadrille::session
