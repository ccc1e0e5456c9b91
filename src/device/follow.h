// SPDX-License-Identifier: Apache-2.0
// What a library owes to others in its process: a stream of theirs behind one of ours or the other way round, and the
// thread's choice of a GPU as it was. Called by src/api for tensors that come and go by DLPack, whose consumer may name
// a default stream; every hand-over between streams of ours is in order.h.
#pragma once

#include "core/result.h"
#include "device/handles.h"

namespace quadrille::device {

// What is enqueued on `stream` from here on runs behind what is on `leader` now. Either may be a default stream.
Status follow(Stream stream, Stream leader);

// The calling thread's GPU.
Result<int> current();

}  // namespace quadrille::device
