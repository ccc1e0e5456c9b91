// SPDX-License-Identifier: Apache-2.0
// The ceiling of a load: how fast this machine copies from page-locked host memory to a GPU. Called by the program's
// load report.
#pragma once

#include "core/result.h"
#include "device/device.h"

namespace quadrille::device {

// Bytes a second of copies of 64 MiB to the thread's GPU, the best of a few; takes about 20 ms and 64 MiB of either
// memory. Waits for its own stream.
Result<double> host_to_device_rate();

}  // namespace quadrille::device
