// SPDX-License-Identifier: Apache-2.0
// Meetings and the tcp body with ranks as threads: strangers at the door, watches, messages in both directions.
#include "parallel/rendezvous.h"

#include <gtest/gtest.h>

#include <latch>
#include <thread>

#include "multi/collective_checks.h"
#include "parallel/open.h"
#include "parallel/watch.h"

namespace quadrille::parallel {
namespace {

using namespace std::chrono_literals;

TEST(MeetingPoint, IsTextAndBack) {
  const MeetingPoint point{"fe80::1", 4711, 1, 0x1234abcdULL};
  const auto parsed = MeetingPoint::parse(point.text());
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(parsed->host, point.host);
  EXPECT_EQ(parsed->port, point.port);
  EXPECT_EQ(parsed->nonce, point.nonce);
  for (const char* text :
       {"", "host", "host:1", ":1/2", "host:0/1", "host:65536/1", "host:1/", "host:x/1", "host:1/g"}) {
    EXPECT_FALSE(MeetingPoint::parse(text)) << text;
  }
}

// All ranks as threads over real connections; body(rank, communicator).
template <typename Body>
void with_tcp_ranks(int size, Body body) {
  auto meeting = open_meeting("127.0.0.1");
  ASSERT_TRUE(meeting) << meeting.error().message;
  const MeetingPoint point = meeting->point;
  std::vector<std::jthread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      OpenOptions options;
      options.timeout = 20s;
      auto c = open_tcp(point, {r, size}, r == 0 ? std::move(meeting->listener) : Listener(), options);
      ASSERT_TRUE(c) << c.error().message;
      body(**c);
    });
  }
}

TEST(TcpCommunicator, GivesTheDefinedBits) {
  for (const int ranks : {2, 3, 6}) {
    std::vector<uint64_t> digest(static_cast<size_t>(ranks));
    with_tcp_ranks(ranks, [&](Communicator& c) {
      EXPECT_STREQ(c.body(), "tcp");
      EXPECT_EQ(multi::check_collectives(c, digest[static_cast<size_t>(c.rank())]), "");
      const Status left = c.leave();
      EXPECT_TRUE(left) << left.error().message;
    });
    for (const uint64_t d : digest) EXPECT_EQ(d, digest[0]);
  }
}

TEST(TcpCommunicator, SaysWhenRanksAreOutOfStep) {
  with_tcp_ranks(2, [](Communicator& c) {
    std::vector<float> data(3);
    const Status done = c.rank() == 0 ? c.barrier() : c.all_reduce_sum(data);
    ASSERT_FALSE(done);
    EXPECT_NE(done.error().message.find("out of step"), std::string::npos) << done.error().message;
  });
}

TEST(TcpCommunicator, ARankThatFailsIsNamedWithItsPhase) {
  std::latch met(3);  // a barrier may return here while it still runs there
  with_tcp_ranks(3, [&](Communicator& c) {
    c.set_phase(Phase::kLoad);
    EXPECT_TRUE(c.barrier());
    met.arrive_and_wait();
    if (c.rank() == 1) {
      c.set_phase(Phase::kPrefill);
      c.fail("a shard is missing");
      return;
    }
    std::vector<float> data(100'000);
    Status done;
    while (done) done = c.all_reduce_sum(data);
    EXPECT_EQ(done.error().code, ErrorCode::kLostRank);
    EXPECT_TRUE(done.error().message.starts_with("rank 1 was lost in phase prefill: a shard is missing"))
        << done.error().message;
    EXPECT_FALSE(c.barrier());
  });
}

TEST(TcpCommunicator, NoticesALossWhileNobodyCalls) {
  std::latch met(3);
  with_tcp_ranks(3, [&](Communicator& c) {
    EXPECT_TRUE(c.barrier());
    met.arrive_and_wait();
    if (c.rank() == 2) return;  // destroyed without leave()
    const auto lost = c.loss()->wait_for(10s);
    ASSERT_TRUE(lost);
    EXPECT_EQ(lost->rank, 2);
    EXPECT_EQ(lost->why, "its communicator was destroyed before leave()");
  });
}

TEST(Rendezvous, StrangersAtTheDoorDisturbNobody) {
  auto meeting = open_meeting("127.0.0.1");
  ASSERT_TRUE(meeting);
  const MeetingPoint point = meeting->point;
  const auto soon = Clock::now() + 5s;
  auto silent = connect_to("127.0.0.1", point.port, soon);
  auto talker = connect_to("127.0.0.1", point.port, soon);
  ASSERT_TRUE(silent && talker);
  const std::string request = "GET / HTTP/1.1\r\nHost: somewhere.example\r\nAccept: everything\r\n\r\n";
  ASSERT_TRUE(send_all(*talker, std::as_bytes(std::span(request)), soon));
  const MeetingPoint other{"127.0.0.1", point.port, 1, point.nonce + 1};
  std::jthread stranger([&] {
    const auto mesh = meet(other, {1, 2}, {}, 1, 400ms);
    ASSERT_FALSE(mesh);
    EXPECT_NE(mesh.error().message.find("another run"), std::string::npos) << mesh.error().message;
  });
  std::jthread guest([&] {
    stranger.join();
    const auto mesh = meet(point, {1, 2}, {}, 2, 5000ms);
    EXPECT_TRUE(mesh) << mesh.error().message;
  });
  const auto mesh = meet(point, {0, 2}, std::move(meeting->listener), 2, 5000ms);
  ASSERT_TRUE(mesh) << mesh.error().message;
  EXPECT_EQ(mesh->size(), 2u);
  EXPECT_TRUE((*mesh)[1][1].open());
}

TEST(Rendezvous, TakesTheNextPortWhereSeveralAreAllowed) {
  auto taken = Listener::open("127.0.0.1", 0);
  ASSERT_TRUE(taken);
  const MeetingPoint point{"127.0.0.1", taken->port(), 16, 77};
  std::jthread guest([&] {
    const auto mesh = meet(point, {1, 2}, {}, 1, 20'000ms);
    EXPECT_TRUE(mesh) << mesh.error().message;
  });
  const auto mesh = meet(point, {0, 2}, {}, 1, 20'000ms);
  EXPECT_TRUE(mesh) << mesh.error().message;
}

// The first cause is named, not the one who left because of it.
TEST(Watch, ARankThatAccusesAnotherIsNotTheLostOne) {
  auto meeting = open_meeting("127.0.0.1");
  ASSERT_TRUE(meeting);
  const MeetingPoint point = meeting->point;
  std::vector<std::shared_ptr<LossState>> loss;
  for (int r = 0; r < 3; ++r) loss.push_back(std::make_shared<LossState>());
  std::vector<std::unique_ptr<Watch>> watches(3);
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < 3; ++r) {
      threads.emplace_back([&, r] {
        auto mesh = meet(point, {r, 3}, r == 0 ? std::move(meeting->listener) : Listener(), 1, 20'000ms);
        ASSERT_TRUE(mesh) << mesh.error().message;
        watches[static_cast<size_t>(r)] =
            std::make_unique<Watch>(r, std::move((*mesh)[0]), loss[static_cast<size_t>(r)]);
      });
    }
  }
  ASSERT_TRUE(watches[0] && watches[1] && watches[2]);
  watches[2]->set_phase(Phase::kDecode);
  watches[1]->declare({2, Phase::kDecode, "it said nothing"});
  watches[1].reset();
  const auto seen = loss[0]->wait_for(5s);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->rank, 2);
  EXPECT_EQ(seen->phase, Phase::kDecode);
}

}  // namespace
}  // namespace quadrille::parallel
