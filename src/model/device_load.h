// SPDX-License-Identifier: Apache-2.0
// Fills the weights' memory of a GPU (device_places.h) from a checkpoint: files -> page-locked ring -> copy stream ->
// preparation stream. Threads fill slots of the ring while the slots before are on their way; prepared matrices never
// lie in host memory. Called by device_model.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "device/device.h"
#include "kernels/api/device_table.h"
#include "model/device_places.h"
#include "model/inventory.h"
#include "model/model.h"
#include "model/pinned_ring.h"
#include "model/slot_pipeline.h"
#include "prepare/device_prepare.h"

namespace quadrille::model {

struct DeviceLoad {
  const Inventory& inventory;
  const ModelConfig& config;
  const LoadOptions& options;
  const WeightPlaces& places;
  const kernels::DeviceTable& table;
  uint8_t* base = nullptr;                    // places.total bytes, usable on `streams.prepare`
  const layout::ModelShard* shard = nullptr;  // what this rank takes; null: everything
  prepare::PrepareStreams streams;            // `done` has passed when the weights stand
  PinnedRing& ring;                           // opened here where it is not yet, or too small
  int ordinal = 0;                            // of the GPU
  device::Allocator allocator = device::default_allocator();
};

struct DeviceLoadReport {
  std::vector<std::string> notes;
  uint64_t bytes_copied = 0;  // host to device
  double seconds = 0;         // from the first file read to the last preparation
  SlotTimes times;            // of all threads
};

// Waits for the end of the work. Errors: those of load_weights(), with the same words; kCapacity where host memory
// cannot be locked; kCancelled; the allocator's kCapacity. On an error nothing is in flight any more.
Result<DeviceLoadReport> load_to_device(const DeviceLoad& load);

// Bytes of device memory beside the weights that a load takes: two experts in the checkpoint's form, and a word.
uint64_t load_device_bytes(const WeightPlaces& places);

}  // namespace quadrille::model
