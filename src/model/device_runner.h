// SPDX-License-Identifier: Apache-2.0
// Steps on a GPU: blocks of integers through page-locked memory, graphs by shape, choices back to the host. Called by
// device_model.cpp, which owns weights and memory.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/result.h"
#include "device/device.h"
#include "model/async_forward.h"
#include "model/device_decoder.h"
#include "model/device_step.h"

namespace quadrille::model {

class DeviceRunner {
 public:
  // `most_padded`: the largest bucket of a decode step; 0: no graphs. Everything given must outlive the runner.
  static Result<std::unique_ptr<DeviceRunner>> create(DeviceDecoder* decoder, const StepSizes& sizes,
                                                      int64_t most_padded, device::Stream stream);

  // A checked step: logits [rows, vocab] on the host when it returns. `observer` or null.
  Status run(const Step& step, int64_t vocab_size, std::span<float> logits, StepObserver* observer);
  // AsyncForward's, for a checked step.
  Status enqueue(const Step& step, std::span<const int32_t> taken_from, std::span<const kernels::SampleRule> rules);
  Result<std::span<const int32_t>> collect();
  int64_t num_graphs() const { return static_cast<int64_t>(graphs_.size()); }

 private:
  // Page-locked memory of one step in flight, and when the device is done with it.
  struct Slot {
    device::PinnedBuffer block;   // StepBlock integers
    device::PinnedBuffer tokens;  // [rows] int32, then the status word
    std::optional<device::OwnedEvent> block_is_read, tokens_are_there;
    bool block_is_sent = false;
    int64_t num_rows = 0;
  };
  struct CapturedStep {
    StepShape shape;
    device::Graph graph;
  };

  DeviceRunner(DeviceDecoder* decoder, const StepSizes& sizes, int64_t most_padded, device::Stream stream)
      : decoder_(*decoder), sizes_(sizes), most_padded_(most_padded), stream_(stream) {}
  PlannedPiece plan(const Step& step, const StepPiece& piece, bool pads) const;
  Status send_block(const Step& step, const PlannedPiece& planned, Slot* slot);
  Status check_async(const Step& step, std::span<const int32_t> taken_from, size_t num_rules) const;
  Status take_tokens(std::span<const int32_t> taken_from);
  bool runs_as_graph(const PlannedPiece& planned) const;
  Status enqueue_padded(const PlannedPiece& planned);
  Status run_piece(const Step& step, const StepPiece& piece, int64_t vocab_size, float* logits, StepObserver* observer);
  Status copy_logits(int64_t num_rows, int64_t vocab_size, float* logits) const;

  DeviceDecoder& decoder_;
  StepSizes sizes_;
  int64_t most_padded_;
  device::Stream stream_;
  Slot slots_[AsyncForward::kInFlight];
  int64_t enqueued_ = 0, collected_ = 0;  // steps of enqueue()
  int64_t sent_ = 0;                      // blocks, of run() and of enqueue()
  int64_t last_rows_ = 0;                 // of the step enqueued last
  std::list<CapturedStep> graphs_;
};

}  // namespace quadrille::model
