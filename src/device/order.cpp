// SPDX-License-Identifier: Apache-2.0
// Hand-overs are records and waits of events. With the step harness a test may drop one: its wait is left out.
#include "device/order.h"

#include "core/check.h"
#include "device/device.h"

#ifdef QD_STEP_HARNESS
#include <atomic>
#endif

namespace quadrille::device {

const char* hand_over_name(HandOver site) {
  switch (site) {
    case HandOver::kSourceCopied:
      return "source_copied";
    case HandOver::kStagingFree:
      return "staging_free";
    case HandOver::kStagingReady:
      return "staging_ready";
    case HandOver::kWeightsPrepared:
      return "weights_prepared";
    case HandOver::kSharedBegins:
      return "shared_begins";
    case HandOver::kSharedEnds:
      return "shared_ends";
    case HandOver::kSharedSplit:
      return "shared_split";
    case HandOver::kSharedAgreed:
      return "shared_agreed";
    case HandOver::kTokensSent:
      return "tokens_sent";
    case HandOver::kRowsReturned:
      return "rows_returned";
    case HandOver::kCount:
      break;
  }
  QD_CHECK(false, "no such hand-over");
}

#ifdef QD_STEP_HARNESS
namespace {
std::atomic<StepHarness*> the_harness{nullptr};
}  // namespace

void set_step_harness(StepHarness* harness) {
  the_harness.store(harness);
}
void before_step(const char* step, Stream stream) {
  if (StepHarness* harness = the_harness.load()) harness->before_step(step, stream);
}
void fresh_buffer(void* memory, size_t bytes, Stream stream) {
  StepHarness* harness = the_harness.load();
  if (harness != nullptr && bytes != 0) harness->fresh_buffer(memory, bytes, stream);
}
bool dropped(HandOver site) {
  StepHarness* harness = the_harness.load();
  return harness != nullptr && harness->drops(site);
}
#endif

Status leave(HandOver site, Event event, Stream from) {
  if (auto done = record(event, from); !done) return done.error().in(hand_over_name(site));
  return {};
}

Status enter(HandOver site, Event event, Stream to) {
  if (dropped(site)) return {};
  if (auto done = wait(to, event); !done) return done.error().in(hand_over_name(site));
  return {};
}

Status hand_over(HandOver site, Event event, Stream from, Stream to) {
  QD_TRY_STATUS(leave(site, event, from));
  return enter(site, event, to);
}

}  // namespace quadrille::device
