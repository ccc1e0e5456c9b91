// SPDX-License-Identifier: Apache-2.0
// The weights behind a qd_weights handle, and when a stream may read them. Called by layer.cpp and weights.cpp.
#pragma once

#include <atomic>
#include <memory>

#include "device/device.h"
#include "moe/device_layer.h"
#include "quadrille/c_api.h"

struct qd_weights {
  explicit qd_weights(quadrille::device::OwnedEvent prepared) : done(std::move(prepared)) {}

  qd_allocator given{};  // the caller's, before the buffers that come from it
  quadrille::moe::DeviceLinear linear;
  int64_t num_parts = 1;
  quadrille::device::Buffer weights, channel_scale, bias, flags;
  quadrille::device::OwnedEvent done;
  mutable std::atomic<bool> settled{false};  // `done` is known to have passed
};

namespace quadrille::api {

// The enums and counts of a description, and that it has arrays; what they hold is read by nobody yet.
Status check_desc(const qd_weights_desc* desc);

// Orders `stream` behind the preparation, until the preparation is known to be done. An error in a capture before that:
// a graph cannot wait for what happens outside of it.
Status order_behind(const qd_weights& weights, device::Stream stream);

}  // namespace quadrille::api
