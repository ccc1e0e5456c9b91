// SPDX-License-Identifier: Apache-2.0
// The hooks of the step harness: called when one is set, silent when none is; names of the hand-overs.
#include "device/order.h"

#include <gmock/gmock.h>

#include <set>
#include <string>
#include <vector>

namespace quadrille::device {
namespace {

class Recorder final : public StepHarness {
 public:
  void before_step(const char* step, Stream) override { steps.emplace_back(step); }
  void fresh_buffer(void*, size_t bytes, Stream) override { sizes.push_back(bytes); }
  bool drops(HandOver site) override { return site == dropped; }
  std::vector<std::string> steps;
  std::vector<size_t> sizes;
  HandOver dropped = HandOver::kCount;
};

TEST(Order, EveryHandOverHasANameOfItsOwn) {
  std::set<std::string> names;
  for (int i = 0; i < static_cast<int>(HandOver::kCount); ++i) {
    names.insert(hand_over_name(static_cast<HandOver>(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(HandOver::kCount));
}

TEST(Order, HooksReachTheHarnessWhileItIsSet) {
  Recorder recorder;
  before_step("nobody hears", {});
  set_step_harness(&recorder);
  before_step("gemm", {});
  fresh_buffer(&recorder, 256, {});
  fresh_buffer(&recorder, 0, {});
  set_step_harness(nullptr);
  before_step("nobody hears", {});
  EXPECT_THAT(recorder.steps, ::testing::ElementsAre("gemm"));
  EXPECT_THAT(recorder.sizes, ::testing::ElementsAre(256u));
}

TEST(Order, ADroppedHandOverDoesNotWait) {
  Recorder recorder;
  set_step_harness(&recorder);
  EXPECT_FALSE(enter(HandOver::kSharedEnds, {}, {})) << "a null event is refused where it is waited for";
  recorder.dropped = HandOver::kSharedEnds;
  EXPECT_TRUE(enter(HandOver::kSharedEnds, {}, {}));
  EXPECT_FALSE(enter(HandOver::kSharedBegins, {}, {}));
  set_step_harness(nullptr);
}

}  // namespace
}  // namespace quadrille::device
