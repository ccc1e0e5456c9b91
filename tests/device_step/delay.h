// SPDX-License-Identifier: Apache-2.0
// A kernel that lets time pass on a stream and does nothing else.
#pragma once

#include <cstdint>

#include "device/handles.h"

namespace quadrille::testing {

void delay(int64_t nanoseconds, device::Stream stream);

}  // namespace quadrille::testing
