// SPDX-License-Identifier: Apache-2.0
// The hand-over between two streams, and the places where a test may make time pass. Every dependency between streams
// in this library goes through hand_over() with a name of its own; a build with QD_STEP_HARNESS lets a test delay every
// step, poison every fresh buffer and drop one hand-over at a time. In other builds the hooks are empty.
#pragma once

#include <cstddef>

#include "core/result.h"
#include "device/handles.h"

namespace quadrille::device {

// All hand-overs there are, between streams of a rank or between ranks; the stress test drops each of them in turn.
enum class HandOver : int {
  kSourceCopied,     // prepare: copy stream -> preparation stream, a staging slot is filled
  kStagingFree,      // prepare: preparation stream -> copy stream, the slot was read and may be overwritten
  kStagingReady,     // prepare: preparation stream (that allocated the slots) -> copy stream, before the first copy
  kWeightsPrepared,  // prepare -> the stream that runs the layer
  kSharedBegins,     // layer: main stream -> side stream, input quantised and shared expert may run
  kSharedEnds,       // layer: side stream -> main stream, before the combine
  kSharedSplit,      // layer of ranks: side stream -> main stream, the shared expert's absmax, before the exchange
  kSharedAgreed,     // layer of ranks: main stream -> side stream, the absmax of all ranks
  kTokensSent,       // expert-parallel layer over peer memory: the barrier of ranks behind their tokens
  kRowsReturned,     // expert-parallel layer over peer memory: the barrier of ranks before the combine
  kCount,
};
const char* hand_over_name(HandOver site);

// Records `event` on `from` and makes `to` wait for it.
Status hand_over(HandOver site, Event event, Stream from, Stream to);
// The two halves apart, where the streams meet in different calls.
Status leave(HandOver site, Event event, Stream from);
Status enter(HandOver site, Event event, Stream to);

#ifdef QD_STEP_HARNESS
class StepHarness {
 public:
  virtual ~StepHarness() = default;
  virtual void before_step(const char* step, Stream stream) = 0;
  virtual void fresh_buffer(void* memory, size_t bytes, Stream stream) = 0;
  virtual bool drops(HandOver site) = 0;
};
// One for the process, set before any engine of the test runs and cleared after; null: no hooks.
void set_step_harness(StepHarness* harness);
void before_step(const char* step, Stream stream);
void fresh_buffer(void* memory, size_t bytes, Stream stream);
// For a hand-over that is not an event: whether the test leaves it out.
bool dropped(HandOver site);
#else
inline void before_step(const char*, Stream) {}
inline void fresh_buffer(void*, size_t, Stream) {}
inline bool dropped(HandOver) {
  return false;
}
#endif

}  // namespace quadrille::device
