// SPDX-License-Identifier: Apache-2.0
// Shows an observer what a layer on a GPU has in memory. Every look copies to the host and waits for the stream, so
// none is for a capture. Called by the device layer where DeviceLayerOptions has an observer, and by
// model/device_observe.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/result.h"
#include "device/handles.h"
#include "moe/layer_observer.h"

namespace quadrille::moe {

struct DeviceCall;
struct MlpCall;

// Device memory on the host.
Result<std::vector<std::byte>> read_bytes(const void* from, size_t bytes, device::Stream stream);
Result<std::vector<float>> read_f32(const float* x, int64_t count, device::Stream stream);
Result<std::vector<int32_t>> read_i32(const int32_t* x, int64_t count, device::Stream stream);
// Rows of `width` values that begin `pitch` elements apart, widened.
Result<std::vector<float>> read_bf16(const uint16_t* rows, int64_t num_rows, int64_t width, int64_t pitch,
                                     device::Stream stream);

// Stages that are shown at once.
class DeviceWatch {
 public:
  DeviceWatch(LayerObserver* observer, device::Stream stream) : observer_(observer), stream_(stream) {}
  Status bf16(const char* name, const uint16_t* rows, int64_t num_rows, int64_t width, int64_t pitch) const;
  Status f32(const char* name, const float* rows, int64_t num_rows, int64_t width) const;
  // Codes [num_rows, k], `pitch` bytes from row to row, and their scales [num_rows].
  Status quantised(const char* name, const char* scale_name, const uint8_t* act, int64_t pitch, const float* scale,
                   int64_t num_rows, int64_t k) const;

 private:
  LayerObserver* observer_;
  device::Stream stream_;
};

// The stages of one call of a routed layer. Parts of its workspace take each other's place, and the shared expert runs
// before or beside the routed ones: what is seen is kept, and told in the order of layer.cpp. gemm1_out is not there:
// the first product's epilogue activates.
class DeviceLayerWatch {
 public:
  explicit DeviceLayerWatch(LayerObserver* observer) : observer_(observer) {}
  // Behind enqueue_up() and enqueue_down() of the routed or the shared experts.
  void up(const MlpCall& mlp);
  void down(const MlpCall& mlp, const void* rows);
  // Behind the last step, every expert being here; the output is the batch's.
  Status tell(const DeviceCall& call);

 private:
  struct Seen {
    std::vector<std::byte> codes[2];  // a1, a2
    std::vector<float> scales[2], hidden, rows;
    int64_t num_rows = 0, k = 0, width = 0, down_k = 0;
  };
  Status see_up(const MlpCall& mlp, Seen* seen) const;
  Status see_down(const MlpCall& mlp, const void* rows, Seen* seen) const;
  void tell_mlp(const Seen& seen, bool is_shared, bool is_partial) const;
  void tell_input(const Seen& seen, const DeviceCall& call, const std::vector<int32_t>& slot_of_route) const;
  void tell_one(const Stage& stage, bool is_shared) const {
    is_shared ? observer_->shared_stage(stage) : observer_->stage(stage);
  }

  LayerObserver* observer_;
  Seen routed_, shared_;
  Status failed_;  // the first look that failed
};

}  // namespace quadrille::moe
