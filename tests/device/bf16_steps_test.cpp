// SPDX-License-Identifier: Apache-2.0
// A k16 step of wgmma has the bits of mma.sync m16n8k16, and the order of the k within a step has none. Attention
// stands on both (docs/kernels/decoder.md).
#include "device/bf16_steps.h"

#include <gtest/gtest.h>

#include <optional>

#include "device/device_memory.h"

namespace quadrille {
namespace {

using testing::Bf16Numbers;
using testing::Bf16StepDifferences;
using testing::must;

class Bf16Steps : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
  }
  std::optional<device::OwnedStream> owned_;
};

TEST_P(Bf16Steps, AreTheSameForWarpsAndWarpgroups) {
  constexpr int kBlocks = 1024;
  testing::PoolMemory memory;
  auto* result = memory.take<Bf16StepDifferences>(1, alignof(Bf16StepDifferences), owned_->get(), 0);
  testing::compare_bf16_steps(static_cast<Bf16Numbers>(GetParam()), 1, kBlocks, result, owned_->get());
  const auto found = testing::on_host<Bf16StepDifferences>(result, 1, owned_->get());
  EXPECT_EQ(found[0].compared, uint64_t{kBlocks} * 64 * 64);
  EXPECT_EQ(found[0].scores, 0u);
  EXPECT_EQ(found[0].reordered, 0u);
  EXPECT_EQ(found[0].values, 0u);
  EXPECT_EQ(found[0].norms, 0u);
}
INSTANTIATE_TEST_SUITE_P(Numbers, Bf16Steps, ::testing::Range(0, static_cast<int>(Bf16Numbers::kCount)));

}  // namespace
}  // namespace quadrille
