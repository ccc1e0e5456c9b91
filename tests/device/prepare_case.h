// SPDX-License-Identifier: Apache-2.0
// Stacks of random matrices for the tests of the preparation: canonical tensors in one piece of page-locked memory,
// what the CPU makes of them, and what the device makes of them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "device/device_memory.h"
#include "device/must.h"
#include "device/random_data.h"
#include "layout/w4_hopper64.h"
#include "layout/w4_lanes16.h"
#include "prepare/device_prepare.h"

namespace quadrille::testing {

struct PrepareStack {
  int64_t experts, part_n, k;
  int64_t group = 128;
  int num_parts = 1;
  kernels::Numerics numerics = kernels::Numerics::kExact;

  layout::W4Hopper64 map() const { return {part_n * num_parts, k, group, numerics == kernels::Numerics::kVllm}; }
  int64_t groups() const { return layout::num_groups(k, group); }
  int64_t matrices() const { return experts * num_parts; }
  int64_t code_bytes(kernels::W4Source source) const {
    return part_n * (source == kernels::W4Source::kInt8 ? k : k / 2);
  }
  std::string name() const;
};

// The canonical tensors, densely: codes at 4-byte, scales at 2-byte places; index expert * num_parts + part.
struct PrepareImage {
  std::vector<int64_t> codes, scales, bias;  // offsets
  device::PinnedBuffer memory;
  size_t bytes = 0;

  PrepareImage(const PrepareStack& s, kernels::W4Source source);
  uint8_t* at(int64_t offset) const { return static_cast<uint8_t*>(memory.get()) + offset; }

 private:
  void fill(const PrepareStack& s, kernels::W4Source source, int64_t index) const;
};

// Where a preparation takes its sources from.
enum class Place {
  kHost,     // the image itself
  kDevice,   // a copy of the image
  kTensors,  // every tensor a take of its own: with GuardedMemory, an unmapped page behind each
};

struct PreparedBytes {
  std::vector<uint8_t> weights;  // [experts, stride]; poison between the experts
  std::vector<uint32_t> channel_scale, bias;
  uint32_t status = 0;
  std::string harmed;  // canaries; "" none
};

// Streams and events of one engine.
struct PrepareEngine {
  device::OwnedStream prepare = must(device::OwnedStream::create()), copy = must(device::OwnedStream::create());
  std::vector<device::OwnedEvent> events;

  PrepareEngine() {
    for (int i = 0; i < 6; ++i) events.push_back(must(device::OwnedEvent::create()));
  }
  prepare::PrepareStreams streams() const;
};

prepare::DeviceW4Source prepare_source(const PrepareStack& s, kernels::W4Source source,
                                       std::span<const prepare::DeviceW4Expert> experts, bool on_host);

PreparedBytes prepare_on_cpu(const PrepareStack& s, ThreadPool* pool);
// Into poisoned takes of `memory`, and back.
PreparedBytes prepare_on_gpu(const PrepareStack& s, const PrepareImage& image, kernels::W4Source source, Place place,
                             Memory& memory, const PrepareEngine& engine);

}  // namespace quadrille::testing
