// SPDX-License-Identifier: Apache-2.0
// Checkpoint matrices -> the Hopper layout on a device, on streams that the caller hands in. From device memory
// directly; from host memory through a staging ring of two experts, copies on one stream and preparation on another,
// ordered by events. No device or stream is synchronised and nothing is read back. Called by loaders and by src/api.
#pragma once

#include <cstdint>
#include <span>

#include "core/result.h"
#include "device/device.h"
#include "device/order.h"
#include "kernels/api/device_table.h"

namespace quadrille::prepare {

// One expert's matrix: gate and up (interleaved by the preparation), or one part alone.
struct DeviceW4Expert {
  const void* codes[2] = {};   // [part_n, k/8] I32, or [part_n, k] I8
  const void* scales[2] = {};  // [part_n, groups] bf16
  const void* bias[2] = {};    // [part_n] fp32 or null (all experts or none)
  // A row-parallel shard of `vllm` (one part): [part_n] fp32, the absmax of the scales of the unsharded row, from which
  // its channel scale is made (CanonicalW4::row_absmax); or null, all experts or none. `exact` does not read it.
  const void* row_absmax = nullptr;
};

// Bytes of one part of an expert, and where its pieces lie in staging memory, behind `codes`. Host memory that holds an
// expert's parts alike, one behind the other, is copied at once.
struct W4PartLayout {
  size_t codes = 0, scales = 0, bias = 0, row_absmax = 0;  // bytes

  static constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
  size_t scales_at() const { return aligned(codes); }
  size_t bias_at() const { return scales_at() + aligned(scales); }
  size_t row_absmax_at() const { return bias_at() + aligned(bias); }
  size_t bytes() const { return row_absmax_at() + aligned(row_absmax); }
};

struct DeviceW4Source {
  kernels::W4Source source = kernels::W4Source::kUint4b8;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  int64_t part_n = 0;  // rows of a part, a multiple of 8
  int32_t num_parts = 1;
  int64_t k = 0;
  int64_t group_size = 0;
  std::span<const DeviceW4Expert> experts;
  bool on_host = false;  // pointers are host memory (page-locked: copies overlap), else device memory
  // Of a host source: experts that are staged and prepared together, 1 to kernels::kMaxPrepareExperts. More of them
  // mean fewer calls and more staging memory.
  int64_t experts_at_once = 1;
};

// Where the prepared stack lies. sizes(): what to allocate.
struct DeviceW4Sizes {
  int64_t expert_stride = 0;  // bytes of one expert, a multiple of 128
  size_t weight_bytes = 0;
  size_t channel_scale_bytes = 0;  // 0 for exact
  size_t bias_bytes = 0;           // 0 without bias
  size_t staging_bytes = 0;        // of two experts (times experts_at_once); 0 where the sources are on the device
};
struct DeviceW4Destination {
  uint8_t* weights = nullptr;
  float* channel_scale = nullptr;
  float* bias = nullptr;
};

// Errors: kUnsupported and kInvalidArgument with rule, numbers and legal values.
Result<DeviceW4Sizes> device_w4_sizes(const DeviceW4Source& source);

// Streams and events of a preparation. `copy` and the events are used for host sources only. `done` is recorded on
// `prepare` at the end: whoever reads the weights enters it (HandOver::kWeightsPrepared).
struct PrepareStreams {
  device::Stream prepare, copy;
  device::Event source_copied[2], staging_free[2], staging_ready, done;
};

// Enqueues everything and returns. `staging`: device memory of staging_bytes, free again when `done` has passed.
// `status`: device word of kernels::StatusBit (kStatusBadScale, also for a row_absmax that is not finite or below a
// scale of its row; kStatusBadCode), read by the caller when it likes.
Status prepare_on_device(const kernels::DeviceTable& table, const DeviceW4Source& source,
                         const DeviceW4Destination& destination, void* staging, const PrepareStreams& streams,
                         uint32_t* status);

}  // namespace quadrille::prepare
