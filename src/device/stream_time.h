// SPDX-License-Identifier: Apache-2.0
// How long work on a stream takes, by events: what the probes of a GPU's ceilings measure with.
#pragma once

#include <functional>

#include "core/result.h"
#include "device/device.h"

namespace quadrille::device {

// Enqueues work on `stream` `rounds` times and waits for each: the seconds of the fastest. Errors of `enqueue`.
Result<double> fastest_seconds(Stream stream, int rounds, const std::function<Status()>& enqueue);

}  // namespace quadrille::device
