// SPDX-License-Identifier: Apache-2.0
// Memory, streams, events and graphs of the device module on a GPU.
#include <gtest/gtest.h>

#include <stdexcept>

#include "device/device_memory.h"
#include "device/order.h"

namespace quadrille::testing {
namespace {

using device::Buffer;
using device::Graph;
using device::OwnedEvent;
using device::OwnedStream;

class Runtime : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    stream_.emplace(must(OwnedStream::create()));
  }
  device::Stream stream() const { return stream_->get(); }

  std::optional<OwnedStream> stream_;
};

TEST_F(Runtime, PropertiesAreThoseOfHopper) {
  const device::Properties p = must(device::properties(0));
  EXPECT_EQ(p.major, 9);
  EXPECT_EQ(p.minor, 0);
  EXPECT_GT(p.num_sms, 0);
  EXPECT_GT(p.l2_bytes, 0u);
  EXPECT_GT(p.total_bytes, p.free_bytes);
  EXPECT_FALSE(device::properties(must(device::count())));
  EXPECT_FALSE(device::properties(-1));
}

TEST_F(Runtime, CopiesComeBackAndMemoryIsAligned) {
  std::vector<uint32_t> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint32_t>(i * i);
  const size_t bytes = values.size() * sizeof(uint32_t);
  const Buffer a = must(Buffer::allocate(bytes, stream())), b = must(Buffer::allocate(bytes, stream()));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.get()) % 256, 0u);
  must(device::copy_to_device(a.get(), values.data(), bytes, stream()));
  must(device::copy_on_device(b.get(), a.get(), bytes, stream()));
  must(device::fill(b.as<uint8_t>() + 4, 0xab, 4, stream()));
  const auto back = on_host<uint32_t>(b.get(), 1000, stream());
  values[1] = 0xabababab;
  EXPECT_EQ(back, values);
}

TEST_F(Runtime, TooMuchMemoryIsAnErrorOfCapacity) {
  const auto buffer = Buffer::allocate(size_t{1} << 50, stream());
  ASSERT_FALSE(buffer);
  EXPECT_EQ(buffer.error().code, ErrorCode::kCapacity) << buffer.error().message;
  EXPECT_TRUE(Buffer::allocate(1 << 20, stream())) << "the error left nothing behind";
}

TEST_F(Runtime, EventsOrderTwoStreams) {
  const OwnedStream other = must(OwnedStream::create());
  const OwnedEvent event = must(OwnedEvent::create());
  const Buffer memory = must(Buffer::allocate(1 << 26, stream()));
  const device::PinnedBuffer out = must(device::PinnedBuffer::allocate(1));
  for (int i = 0; i < 20; ++i) {
    const auto byte = static_cast<uint8_t>(i + 1);
    must(device::fill(memory.get(), byte, memory.size_bytes(), stream()));
    must(device::hand_over(device::HandOver::kSharedBegins, event.get(), stream(), other.get()));
    must(device::copy_to_host(out.get(), memory.as<uint8_t>() + memory.size_bytes() - 1, 1, other.get()));
    must(device::synchronize(other.get()));
    EXPECT_EQ(*static_cast<uint8_t*>(out.get()), byte);
  }
  EXPECT_TRUE(must(device::reached(event.get())));
}

TEST_F(Runtime, TimedEventsMeasure) {
  const OwnedEvent begin = must(OwnedEvent::create(true)), end = must(OwnedEvent::create(true));
  const Buffer memory = must(Buffer::allocate(1 << 26, stream()));
  must(device::record(begin.get(), stream()));
  must(device::fill(memory.get(), 1, memory.size_bytes(), stream()));
  must(device::record(end.get(), stream()));
  must(device::synchronize(end.get()));
  EXPECT_GT(must(device::elapsed_ms(begin.get(), end.get())), 0.0f);
}

TEST_F(Runtime, GraphsReplayWithASideStream) {
  const OwnedStream side = must(OwnedStream::create());
  const OwnedEvent fork = must(OwnedEvent::create()), join = must(OwnedEvent::create());
  const Buffer memory = must(Buffer::allocate(512, stream()));
  must(device::fill(memory.get(), 0, 512, stream()));
  must(device::synchronize(stream()));
  const Graph graph = must(Graph::capture(stream(), [&]() -> Status {
    EXPECT_TRUE(must(device::capturing(stream())));
    QD_TRY_STATUS(device::hand_over(device::HandOver::kSharedBegins, fork.get(), stream(), side.get()));
    QD_TRY_STATUS(device::fill(memory.get(), 0x11, 256, side.get()));
    QD_TRY_STATUS(device::fill(memory.as<uint8_t>() + 256, 0x22, 256, stream()));
    return device::hand_over(device::HandOver::kSharedEnds, join.get(), side.get(), stream());
  }));
  EXPECT_FALSE(must(device::capturing(stream())));
  EXPECT_EQ(on_host<uint8_t>(memory.get(), 1, stream())[0], 0) << "a capture executes nothing";
  must(graph.launch(stream()));
  const auto bytes = on_host<uint8_t>(memory.get(), 512, stream());
  EXPECT_EQ(bytes[0], 0x11);
  EXPECT_EQ(bytes[511], 0x22);
}

// What passed before a capture is known inside of it.
TEST_F(Runtime, EventsCanBeAskedDuringACapture) {
  const OwnedEvent event = must(OwnedEvent::create());
  const Buffer memory = must(Buffer::allocate(4, stream()));
  must(device::record(event.get(), stream()));
  must(device::synchronize(stream()));
  const Graph graph = must(Graph::capture(stream(), [&]() -> Status {
    EXPECT_TRUE(must(device::reached(event.get())));
    return device::fill(memory.get(), 5, 4, stream());
  }));
  must(graph.launch(stream()));
  EXPECT_EQ(on_host<uint8_t>(memory.get(), 1, stream())[0], 5);
}

TEST_F(Runtime, AFailingCaptureLeavesTheStreamUsable) {
  const Buffer memory = must(Buffer::allocate(4, stream()));
  const auto refused = Graph::capture(stream(), [&]() -> Status {
    QD_TRY_STATUS(device::fill(memory.get(), 9, 4, stream()));
    return make_error(ErrorCode::kUnsupported, "not today");
  });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "not today");
  EXPECT_THROW((void)Graph::capture(stream(), []() -> Status { throw std::runtime_error("thrown"); }),
               std::runtime_error);
  EXPECT_FALSE(must(device::capturing(stream())));
  must(device::fill(memory.get(), 7, 4, stream()));
  EXPECT_EQ(on_host<uint8_t>(memory.get(), 1, stream())[0], 7);
}

TEST_F(Runtime, AnUnjoinedSideStreamIsAnError) {
  const OwnedStream side = must(OwnedStream::create());
  const OwnedEvent fork = must(OwnedEvent::create());
  const Buffer memory = must(Buffer::allocate(4, stream()));
  const auto graph = Graph::capture(stream(), [&]() -> Status {
    QD_TRY_STATUS(device::hand_over(device::HandOver::kSharedBegins, fork.get(), stream(), side.get()));
    return device::fill(memory.get(), 1, 4, side.get());
  });
  EXPECT_FALSE(graph);
  must(device::fill(memory.get(), 7, 4, stream()));
  EXPECT_EQ(on_host<uint8_t>(memory.get(), 1, stream())[0], 7);
}

}  // namespace
}  // namespace quadrille::testing
