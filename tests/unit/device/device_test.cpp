// SPDX-License-Identifier: Apache-2.0
// The rules of a device on made-up properties, and what every call says on a machine without a GPU.
#include "device/device.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "device/order.h"

namespace quadrille::device {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

Properties hopper() {
  Properties p;
  p.name = "H100";
  p.major = 9;
  p.minor = 0;
  p.num_sms = 132;
  p.driver_version = 13000;
  return p;
}

TEST(DeviceRules, HopperIsAccepted) {
  EXPECT_TRUE(check_properties(hopper()));
  Properties newer = hopper();
  newer.driver_version = 14010;
  EXPECT_TRUE(check_properties(newer));
}

TEST(DeviceRules, AnotherCapabilityIsNamed) {
  for (const auto& [major, minor] : {std::pair(8, 0), std::pair(8, 9), std::pair(10, 0), std::pair(12, 1)}) {
    Properties p = hopper();
    p.name = "other";
    p.major = major;
    p.minor = minor;
    const Status status = check_properties(p);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
    EXPECT_THAT(status.error().message, HasSubstr("expected compute capability 9.0"));
    EXPECT_THAT(status.error().message, HasSubstr("other"));
    EXPECT_THAT(status.error().message, HasSubstr(fmt::format("found {}.{}", major, minor)));
  }
}

TEST(DeviceRules, AnOldDriverIsNamed) {
  Properties p = hopper();
  p.driver_version = 11080;
  const Status status = check_properties(p);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
  EXPECT_THAT(status.error().message, HasSubstr("found one for CUDA 11.8"));
  EXPECT_THAT(status.error().message, AnyOf(HasSubstr("CUDA 12.0 or newer"), HasSubstr("CUDA 13.0 or newer")));
}

TEST(DeviceRules, DefaultStreamsAreRefused) {
  int own = 0;
  EXPECT_TRUE(check_stream({&own}));
  for (const uintptr_t handle : {0, 1, 2}) {
    const Status status = check_stream({reinterpret_cast<void*>(handle)});
    ASSERT_FALSE(status) << handle;
    EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
    EXPECT_THAT(status.error().message, HasSubstr("default stream"));
  }
}

// Memory of the host behind the allocator's border: who takes, gives back.
struct FakeMemory {
  int taken = 0, released = 0;
  void* last_stream = nullptr;
};
Allocator fake_allocator(FakeMemory* memory) {
  return {memory,
          [](void* context, size_t bytes, Stream) -> void* {
            ++static_cast<FakeMemory*>(context)->taken;
            return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
          },
          [](void* context, void* memory_taken, size_t, Stream stream) {
            auto* all = static_cast<FakeMemory*>(context);
            ++all->released;
            all->last_stream = stream.handle;
            std::free(memory_taken);
          }};
}

TEST(Buffers, GoBackToTheirAllocatorInTheOrderOfTheirStream) {
  int stream = 0, later = 0;
  FakeMemory memory;
  auto first = Buffer::allocate(1000, {&stream}, fake_allocator(&memory));
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(first->size_bytes(), 1000u);
  {
    Buffer moved = std::move(*first);
    EXPECT_EQ(memory.released, 0);
  }
  EXPECT_EQ(memory.released, 1);
  EXPECT_EQ(memory.last_stream, &stream);
  {
    auto second = Buffer::allocate(1, {&stream}, fake_allocator(&memory));
    ASSERT_TRUE(second);
    second->release_on({&later});
  }
  EXPECT_EQ(memory.taken, 2);
  EXPECT_EQ(memory.released, 2);
  EXPECT_EQ(memory.last_stream, &later);
  EXPECT_FALSE(Buffer::allocate(1, {&stream}, Allocator{}));
  EXPECT_FALSE(Buffer::allocate(1, {}, fake_allocator(&memory))) << "the default stream";
}

// Takes what fits into a budget, then nothing.
TEST(Buffers, MemoryThatEndsIsToldWithWhatWasAsked) {
  struct Budget {
    size_t left = 1000;
    int alive = 0;
  } budget;
  const Allocator allocator = {&budget,
                               [](void* context, size_t bytes, Stream) -> void* {
                                 auto* of = static_cast<Budget*>(context);
                                 if (bytes > of->left) return nullptr;
                                 of->left -= bytes;
                                 ++of->alive;
                                 return std::aligned_alloc(256, (bytes + 255) / 256 * 256);
                               },
                               [](void* context, void* memory, size_t bytes, Stream) {
                                 auto* of = static_cast<Budget*>(context);
                                 of->left += bytes;
                                 --of->alive;
                                 std::free(memory);
                               }};
  int stream = 0;
  {
    const auto first = Buffer::allocate(600, {&stream}, allocator);
    ASSERT_TRUE(first) << first.error().message;
    const auto second = Buffer::allocate(401, {&stream}, allocator);
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, ErrorCode::kCapacity);
    EXPECT_THAT(second.error().message, HasSubstr("asked for 401 bytes of device memory"));
    EXPECT_EQ(budget.alive, 1);
  }
  EXPECT_EQ(budget.alive, 0);
  EXPECT_EQ(budget.left, 1000u);
}

TEST(WithoutGpu, EveryCallReturnsTheReason) {
  const Status here = available();
  if (here) GTEST_SKIP() << "a GPU is here";
  EXPECT_FALSE(here.error().message.empty());
  EXPECT_FALSE(available(7));
  EXPECT_FALSE(use(0));
  EXPECT_FALSE(memory_info());
  EXPECT_FALSE(OwnedStream::create());
  EXPECT_FALSE(OwnedEvent::create(true));
  int own = 0, event = 0;
  const Stream stream{&own};
  EXPECT_FALSE(Buffer::allocate(16, stream));
  EXPECT_FALSE(PinnedBuffer::allocate(16));
  EXPECT_FALSE(record({}, stream));
  EXPECT_FALSE(wait(stream, {}));
  EXPECT_FALSE(synchronize(Stream{}));
  EXPECT_FALSE(synchronize(Event{}));
  EXPECT_FALSE(elapsed_ms({}, {}));
  EXPECT_FALSE(copy_to_device(&own, &event, 4, {}));
  EXPECT_FALSE(copy_to_host(nullptr, &event, 4, stream));
  EXPECT_FALSE(copy_on_device(&own, nullptr, 4, stream));
  EXPECT_FALSE(fill(nullptr, 0, 4, stream));
  EXPECT_FALSE(Graph::capture({}, [] { return Status(); }));
  EXPECT_FALSE(hand_over(HandOver::kSharedBegins, {}, stream, stream));
}

}  // namespace
}  // namespace quadrille::device
