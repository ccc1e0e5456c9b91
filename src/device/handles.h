// SPDX-License-Identifier: Apache-2.0
// Streams and events as opaque handles, so that no layer above needs a CUDA header. The default stream has no Stream:
// a null handle is a caller's error and device calls refuse it.
#pragma once

namespace quadrille::device {

struct Stream {
  void* handle = nullptr;  // cudaStream_t
};
struct Event {
  void* handle = nullptr;  // cudaEvent_t, without timing
};

}  // namespace quadrille::device
