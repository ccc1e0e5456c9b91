// SPDX-License-Identifier: Apache-2.0
// The stream that a call's work goes on. A stream of the caller's is used as it is; work for a default stream goes on a
// stream of ours, ordered behind and in front of it by events, for nothing of ours runs on a default stream.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace quadrille::python {

inline constexpr uintptr_t kLegacyStream = 1;     // as DLPack and CUDA number it
inline constexpr uintptr_t kPerThreadStream = 2;  // likewise

// The handle in `stream`: an int, or an object with cuda_stream (torch), ptr (cupy) or handle; None and 0 are the
// legacy default stream, as in DLPack. TypeError otherwise.
uintptr_t stream_handle(nanobind::handle stream);

// Of the GPU `ordinal`, which becomes the thread's own: a stream for what runs for a default stream, made once and kept
// until the process ends.
void* own_stream(int32_t ordinal);

// RuntimeError where CUDA refuses. Both may be default streams.
void follow(void* stream, void* leader);
inline void* pointer_of(uintptr_t handle) {
  return reinterpret_cast<void*>(handle);  // NOLINT(performance-no-int-to-ptr): a handle is what CUDA calls a pointer
}

// From here on the thread's GPU is `ordinal`, and work enqueued on stream() runs where the caller asked. finish() says
// that all of it is enqueued.
class CallStream {
 public:
  CallStream(int32_t ordinal, uintptr_t given);
  void finish();
  void* stream() const { return stream_; }

 private:
  void* given_;
  void* stream_;
};

}  // namespace quadrille::python
