// SPDX-License-Identifier: Apache-2.0
#include "parallel/thread_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "multi/collective_checks.h"

namespace quadrille::parallel {
namespace {

TEST(ThreadCommunicator, GivesTheDefinedBitsAtEverySize) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    SCOPED_TRACE(ranks);
    std::vector<uint64_t> digest(static_cast<size_t>(ranks));
    const Status done = run_rank_threads(ranks, [&](Communicator& c) -> Status {
      const std::string wrong = multi::check_collectives(c, digest[static_cast<size_t>(c.rank())]);
      if (!wrong.empty()) return make_error(ErrorCode::kInvalidData, "{}", wrong);
      return {};
    });
    ASSERT_TRUE(done) << done.error().message;
    for (const uint64_t d : digest) EXPECT_EQ(d, digest[0]);
  }
}

TEST(ThreadCommunicator, KeepsUpThroughManySmallCalls) {
  std::vector<float> last(4);
  const Status done = run_rank_threads(4, [&](Communicator& c) -> Status {
    float value = 0;
    for (int step = 0; step < 5000; ++step) {
      std::vector<float> data(static_cast<size_t>(1 + step % 40), static_cast<float>(c.rank() + step));
      QD_TRY_STATUS(c.all_reduce_sum(data));
      const auto want = static_cast<float>(6 + 4 * step);
      if (!std::all_of(data.begin(), data.end(), [&](float x) { return x == want; })) {
        return make_error(ErrorCode::kInvalidData, "step {}: {} is not {}", step, data[0], want);
      }
      value = data[0];
    }
    last[static_cast<size_t>(c.rank())] = value;
    return {};
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(last, std::vector<float>(4, 6 + 4 * 4999));
}

TEST(ThreadCommunicator, TwoGroupsLiveInOneProcess) {
  const Status outer = run_rank_threads(2, [](Communicator& a) -> Status {
    return run_rank_threads(3, [&](Communicator& b) -> Status {
      float x = static_cast<float>(10 * a.rank() + b.rank());
      QD_TRY_STATUS(b.all_reduce_sum(std::span(&x, 1)));
      if (x != static_cast<float>(30 * a.rank() + 3)) return make_error(ErrorCode::kInvalidData, "got {}", x);
      return {};
    });
  });
  EXPECT_TRUE(outer) << outer.error().message;
}

TEST(ThreadCommunicator, SplitsTwice) {
  // 2 x 2 x 2: rows, then pairs inside of a row.
  const Status done = run_rank_threads(8, [](Communicator& all) -> Status {
    QD_TRY(auto row, all.split(all.rank() / 4));
    QD_TRY(auto pair, row->split(row->rank() / 2));
    float x = static_cast<float>(1 << all.rank());
    QD_TRY_STATUS(pair->all_reduce_sum(std::span(&x, 1)));
    const int first = all.rank() / 2 * 2;
    if (x != static_cast<float>((1 << first) + (2 << first))) return make_error(ErrorCode::kInvalidData, "got {}", x);
    QD_TRY_STATUS(row->barrier());
    return {};
  });
  EXPECT_TRUE(done) << done.error().message;
}

TEST(ThreadCommunicator, RefusesSizesThatDoNotFit) {
  auto c = single_communicator();
  std::vector<std::byte> mine(4), all(8);
  const Status gathered = c->all_gather(mine, all);
  ASSERT_FALSE(gathered);
  EXPECT_EQ(gathered.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(gathered.error().message.find("room for 8"), std::string::npos) << gathered.error().message;
  const size_t counts[] = {3};
  EXPECT_FALSE(c->all_to_all_v(mine, counts, all, counts));
  EXPECT_FALSE(c->broadcast(all, 1));
  std::vector<float> in(3), out(2);
  EXPECT_FALSE(c->reduce_scatter_sum(in, counts, out));
}

TEST(SingleCommunicator, CopiesAndLeavesDataAlone) {
  auto c = single_communicator();
  uint64_t digest = 0;
  EXPECT_EQ(multi::check_collectives(*c, digest), "");
  EXPECT_TRUE(c->leave());
  EXPECT_STREQ(c->body(), "single");
}

TEST(ThreadCommunicator, SaysWhenRanksAreOutOfStep) {
  std::string other;
  const Status done = run_rank_threads(2, [&](Communicator& c) -> Status {
    if (c.rank() == 0) return c.barrier();
    std::vector<float> data(3);
    Status sum = c.all_reduce_sum(data);
    other = sum.error().message;
    return sum;
  });
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("out of step"), std::string::npos) << done.error().message;
  EXPECT_NE(other.find("out of step"), std::string::npos) << other;
}

TEST(ThreadCommunicator, SaysWhenSizesDiffer) {
  const Status done = run_rank_threads(2, [&](Communicator& c) -> Status {
    std::vector<float> data(c.rank() == 0 ? 3 : 5);
    return c.all_reduce_sum(data);
  });
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("out of step"), std::string::npos) << done.error().message;
}

}  // namespace
}  // namespace quadrille::parallel
