// SPDX-License-Identifier: Apache-2.0
// The streams and events of a model on a GPU: those of a step and those that its weights are prepared on. Owned by
// device_model.cpp.
#pragma once

#include <vector>

#include "core/result.h"
#include "device/device.h"
#include "moe/device_layer.h"
#include "prepare/device_prepare.h"

namespace quadrille::model {

struct DeviceModelStreams {
  std::vector<device::OwnedStream> streams;
  std::vector<device::OwnedEvent> events;
  moe::DeviceStreams layer;
  prepare::PrepareStreams prepare;

  Status open() {
    for (device::Stream* stream : {&layer.main, &layer.side, &prepare.prepare, &prepare.copy}) {
      QD_TRY(device::OwnedStream made, device::OwnedStream::create());
      *stream = made.get();
      streams.push_back(std::move(made));
    }
    for (device::Event* event :
         {&layer.shared_begins, &layer.shared_ends, &prepare.source_copied[0], &prepare.source_copied[1],
          &prepare.staging_free[0], &prepare.staging_free[1], &prepare.staging_ready, &prepare.done}) {
      QD_TRY(device::OwnedEvent made, device::OwnedEvent::create());
      *event = made.get();
      events.push_back(std::move(made));
    }
    return {};
  }
};

}  // namespace quadrille::model
