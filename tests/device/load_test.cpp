// SPDX-License-Identifier: Apache-2.0
// What a load takes of a GPU's memory, counted by its allocator, and what is left when one of its allocations fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "device/device.h"
#include "device/link_rate.h"
#include "kernels/api/device_table.h"
#include "model/device_model.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

// The device's own allocator, counted; the allocation of number `failing` fails.
struct Counted {
  int64_t failing = -1, allocations = 0, alive = 0;
  size_t taken = 0, peak = 0;

  device::Allocator allocator() {
    return {this,
            [](void* context, size_t bytes, device::Stream stream) -> void* {
              auto* all = static_cast<Counted*>(context);
              if (all->allocations++ == all->failing) return nullptr;
              const device::Allocator own = device::default_allocator();
              void* const memory = own.allocate(own.context, bytes, stream);
              if (memory == nullptr) return nullptr;
              ++all->alive;
              all->taken += bytes;
              all->peak = std::max(all->peak, all->taken);
              return memory;
            },
            [](void* context, void* memory, size_t bytes, device::Stream stream) {
              auto* all = static_cast<Counted*>(context);
              --all->alive;
              all->taken -= bytes;
              const device::Allocator own = device::default_allocator();
              own.release(own.context, memory, bytes, stream);
            }};
  }
};

class DeviceLoadTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const Status here = device::available(); !here) GTEST_SKIP() << here.error().message;
    folder = source_path("models/abacus/w4a8");
    if (!std::filesystem::exists(folder + "/model.safetensors")) GTEST_SKIP() << "needs models/abacus with its weights";
    options.pool = &pool;
    options.default_positions = 256;
    device.table = *kernels::device_table();
    device.allocator = counted.allocator();
  }

  ThreadPool pool{4, ThreadPool::Start::kAll};
  std::string folder;
  Counted counted;
  model::LoadOptions options;
  model::DeviceOptions device;
};

TEST_F(DeviceLoadTest, TakesWhatWasPlannedAndGivesItBack) {
  {
    const auto model = model::DeviceModel::load(folder, options, device);
    ASSERT_TRUE(model.ok()) << model.error().message;
    EXPECT_LE(counted.peak + model::kDeviceReserveBytes, (*model)->memory_plan().needed_bytes);
    EXPECT_GT(counted.taken, 0u);
  }
  EXPECT_EQ(counted.taken, 0u);
  EXPECT_EQ(counted.alive, 0);
}

TEST_F(DeviceLoadTest, MemoryThatEndsMidwayLeavesNothing) {
  int64_t failed = 0;
  for (; failed < 100; ++failed) {
    counted.failing = failed;
    counted.allocations = 0;
    const auto model = model::DeviceModel::load(folder, options, device);
    if (model.ok()) break;
    EXPECT_EQ(model.error().code, ErrorCode::kCapacity) << model.error().message;
    EXPECT_THAT(model.error().message, ::testing::ContainsRegex("asked for [0-9]+ bytes of device memory"));
    EXPECT_EQ(counted.alive, 0) << failed;
    EXPECT_EQ(counted.taken, 0u) << failed;
  }
  EXPECT_GE(failed, 5);
}

TEST_F(DeviceLoadTest, TheLinkHasARate) {
  ASSERT_TRUE(device::use(0).ok());
  const auto rate = device::host_to_device_rate();
  ASSERT_TRUE(rate.ok()) << rate.error().message;
  EXPECT_GT(*rate, 1e9);
  EXPECT_LT(*rate, 1e12);
}

}  // namespace
}  // namespace quadrille::testing
