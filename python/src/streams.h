// SPDX-License-Identifier: Apache-2.0
// The stream that a call's work goes on. A stream of the caller's is used as it is; work for a default stream goes on a
// stream of ours, ordered behind and in front of it by events, for nothing of ours runs on a default stream.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "quadrille/c_api.h"

namespace quadrille::python {

inline constexpr uintptr_t kLegacyStream = 1;     // as DLPack and CUDA number it
inline constexpr uintptr_t kPerThreadStream = 2;  // likewise

// The handle in `stream`: an int, or an object with cuda_stream (torch), ptr (cupy) or handle; None and 0 are the
// legacy default stream, as in DLPack. TypeError otherwise.
uintptr_t stream_handle(nanobind::handle stream);

// The thread's GPU for as long as this lives; then again the one that others in the process had chosen.
class ChosenGpu {
 public:
  explicit ChosenGpu(int32_t ordinal);
  ~ChosenGpu();
  ChosenGpu(const ChosenGpu&) = delete;
  ChosenGpu& operator=(const ChosenGpu&) = delete;
  // RuntimeError and the like where the GPU could not be chosen.
  void require() const;

 private:
  qd_error error_{};
  int32_t before_ = 0, ordinal_;
};

// Of the GPU `ordinal`: a stream for what runs for a default stream, made once and kept until the process ends.
void* own_stream(int32_t ordinal);

// Of the same GPU: the stream on which memory goes back. It waits for others and nobody for it.
void* keeper_stream(int32_t ordinal);

// Whether calls on the stream go into a graph.
bool is_captured(void* stream);

// RuntimeError where CUDA refuses. Both may be default streams.
void follow(void* stream, void* leader);
inline void* pointer_of(uintptr_t handle) {
  return reinterpret_cast<void*>(handle);  // NOLINT(performance-no-int-to-ptr): a handle is what CUDA calls a pointer
}

// What streams were doing at some time: an event each, which outlives its stream. Handles of streams are kept as names
// alone: their owners may have destroyed them. With the interpreter's lock.
class Marks {
 public:
  Marks() = default;
  ~Marks();
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;
  // What is enqueued on `stream` until now, instead of what was noted of it before. Nothing in a capture: whoever
  // captures keeps what the graph uses.
  void note(void* stream);
  // `stream` behind all that was noted; false where the GPU does not answer.
  bool order(void* stream) const;

 private:
  std::vector<std::pair<void*, void*>> events_;  // stream, event
};

// As long as this lives the thread's GPU is `ordinal`, and work enqueued on stream() runs where the caller asked.
// finish() says that all of it is enqueued.
class CallStream {
 public:
  CallStream(int32_t ordinal, uintptr_t given);
  void finish();
  void* stream() const { return stream_; }

 private:
  ChosenGpu gpu_;
  void* given_;
  void* stream_;
};

}  // namespace quadrille::python
