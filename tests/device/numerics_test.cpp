// SPDX-License-Identifier: Apache-2.0
// The shared functions of numerics/ give the same bits on host and device, and the quantiser's short forms give the
// bits of the functions that they stand for.
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "core/thread_pool.h"
#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "device/numerics_sweep.h"

namespace quadrille {
namespace {

using testing::must;
using testing::Sweep;

class NumericsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
  }
  device::Stream stream() const { return owned_->get(); }

  void expect_no_difference(void (*compare)(uint64_t*, device::Stream)) {
    testing::PoolMemory memory;
    auto* result = memory.take<uint64_t>(2, sizeof(uint64_t), stream(), 0);
    compare(result, stream());
    const auto found = testing::on_host<uint64_t>(result, 2, stream());
    EXPECT_EQ(found[0], 0u) << "largest argument that differs: " << std::hex << found[1] - 1;
  }

  std::optional<device::OwnedStream> owned_;
};

class NumericsSweep : public NumericsTest, public ::testing::WithParamInterface<int> {};

TEST_P(NumericsSweep, HostAndDeviceAgree) {
  constexpr int64_t kCount = 65536 + (int64_t{1} << 24);
  constexpr int64_t kPart = 65536;
  const auto function = static_cast<Sweep>(GetParam());
  testing::PoolMemory memory;
  auto* results = memory.take<uint32_t>(kCount, sizeof(uint32_t), stream());
  testing::run_sweep(function, results, kCount, stream());
  std::vector<uint32_t> expected(kCount);
  ThreadPool pool;
  pool.run(kCount / kPart, [&](int64_t part) {
    for (int64_t i = part * kPart; i < (part + 1) * kPart; ++i) expected[i] = testing::sweep_result(function, i);
  });
  const auto found = testing::on_host<uint32_t>(results, kCount, stream());
  EXPECT_EQ(testing::bit_differences(found, expected, kCount), "");
}

INSTANTIATE_TEST_SUITE_P(All, NumericsSweep, ::testing::Range(0, static_cast<int>(Sweep::kCount)));

TEST_F(NumericsTest, HardwareConversionIsE4m3OfF32ForAllFloats) {
  expect_no_difference(testing::compare_e4m3_conversion);
}
TEST_F(NumericsTest, CorrectedReciprocalIsDivisionForAllSignificands) {
  expect_no_difference(testing::compare_bf16_quotient);
}
TEST_F(NumericsTest, RowCodesAreActCodesForAllRows) {
  expect_no_difference(testing::compare_row_codes);
}

}  // namespace
}  // namespace quadrille
