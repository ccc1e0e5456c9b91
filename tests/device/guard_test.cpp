// SPDX-License-Identifier: Apache-2.0
// The layer and the preparation with every buffer in front of an unmapped page: expert counts 1 to 130, odd shapes and
// token counts. Reading behind a buffer is an error of the device, writing in front of one harms canaries, and the rows
// still equal `hopper`. After such an error every later call of the process fails: the first failure is the one to
// read.
#include <gtest/gtest.h>

#include "device/compare_bits.h"
#include "device/guarded_memory.h"
#include "device/layer_case.h"
#include "device/random_data.h"

namespace quadrille::testing {
namespace {

class Guard : public ::testing::TestWithParam<LayerSpec> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  }
  static ThreadPool& all_cores() {
    static ThreadPool pool;
    return pool;
  }
};
TEST_P(Guard, LayerStaysInItsBuffers) {
  const LayerSpec& spec = GetParam();
  LayerCase layer(spec, &all_cores(), std::make_unique<GuardedMemory>());
  const auto configs = static_cast<uint64_t>(layer.table().w4a8_configs().size());
  for (const bool forced : {false, true}) {
    Call call{.keys = keys_in_order(spec.tokens)};
    if (forced) {
      call.junk_ids = spec.input == RouteInput::kIds;
      call.options.gemm1_config = static_cast<int32_t>(hash(3, spec.seed) % configs);
      call.options.gemm2_config = static_cast<int32_t>(hash(4, spec.seed) % configs);
    }
    std::string problems;
    const auto found = layer.run(call, &problems);
    EXPECT_EQ(problems, "");
    EXPECT_EQ(bit_differences(found, layer.expected(call.keys), spec.hidden), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Guard, Guard, ::testing::ValuesIn(guard_cases()),
                         [](const auto& spec) { return spec.param.name(); });

// No wrong access here: it would end the process's use of the device. The take ends where the page ends.
TEST(GuardedMemory, EndsWithItsPage) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const auto stream = must(device::OwnedStream::create());
  GuardedMemory memory;
  const auto* four = memory.take<uint8_t>(4, 4, stream.get());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(four + 4) % 65536, 0u);
  auto* padded = memory.take<uint8_t>(20, 16, stream.get());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(padded) % 16, 0u);
  EXPECT_LT(65536 - reinterpret_cast<uintptr_t>(padded + 20) % 65536, 16u);
  EXPECT_EQ(memory.harmed(stream.get()), "");
  must(device::fill(padded - 1, 0, 1, stream.get()));
  EXPECT_NE(memory.harmed(stream.get()), "") << "a canary in front";
}

}  // namespace
}  // namespace quadrille::testing
