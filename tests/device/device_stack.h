// SPDX-License-Identifier: Apache-2.0
// A stack of random 4-bit matrices on the device, prepared there by prepare_on_device; cpu_stack.h makes single ones of
// it on the CPU.
#pragma once

#include "device/cpu_stack.h"
#include "device/device_memory.h"
#include "kernels/api/device_table.h"
#include "moe/device_layer.h"

namespace quadrille::testing {

// Everything is enqueued on `stream`; what the result names lives in `memory`. Canonical weights exist for a few
// experts at a time, in memory of the same kind.
moe::DeviceLinear make_device_stack(const kernels::DeviceTable& table, const StackSpec& spec, Memory* memory,
                                    device::Stream stream);

}  // namespace quadrille::testing
