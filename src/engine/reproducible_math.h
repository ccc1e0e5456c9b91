// SPDX-License-Identifier: Apache-2.0
// exp and log of draws and log-probabilities: the functions that the device's sampling shares.
#pragma once

#include "numerics/double_math.h"

namespace quadrille::engine {

using numerics::reproducible_exp;
using numerics::reproducible_log;

}  // namespace quadrille::engine
