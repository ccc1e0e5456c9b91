// SPDX-License-Identifier: Apache-2.0
// Ranks that speak through each other's memory: the one-shot reduction against the host's collectives bit by bit, ten
// thousand replays of a graph whose data changes, both halves of the inboxes, lost and late ranks, processes. Each rank
// has a GPU of its own where there are two; with one GPU the ranks share it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "device/device.h"
#include "device/launched_ranks.h"
#include "device/peer_rounds.h"
#include "device/random_data.h"
#include "parallel/peer_ranks.h"
#include "parallel/thread_group.h"

namespace quadrille::parallel {
namespace {

using testing::RoundData;
using testing::RoundState;
using namespace std::chrono_literals;

struct Rank {
  Communicator& host;
  PeerRanks& peers;
  device::Stream stream;
};

int ordinal_of(int rank) {
  const auto gpus = device::count();
  return gpus ? rank % *gpus : 0;
}

// Sets a rank up on its GPU, runs `body`, ends in order.
Status run_rank(Communicator& host, std::chrono::milliseconds patience, const std::function<Status(Rank&)>& body) {
  QD_TRY_STATUS(device::use(ordinal_of(host.rank())));
  QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
  QD_TRY(auto peers, PeerRanks::create(host, ordinal_of(host.rank()), stream.get(), {patience}));
  Rank rank{host, *peers, stream.get()};
  QD_TRY_STATUS(body(rank));
  QD_TRY_STATUS(device::synchronize(stream.get()));
  QD_TRY_STATUS(peers->check());
  return peers->close();
}

Status on_ranks(int num_ranks, const std::function<Status(Rank&)>& body, std::chrono::milliseconds patience = 20s) {
  return run_rank_threads(num_ranks, [&](Communicator& host) { return run_rank(host, patience, body); });
}

std::vector<float> random_floats(size_t count, uint64_t seed) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const uint64_t h = testing::hash(seed, i);
    auto bits = static_cast<uint32_t>(h >> 32);
    if (h & 31) bits = (bits & 0x81ffffffu) | 0x3a000000u;
    if ((h >> 5 & 63) == 0) bits &= 0x807fffffu;
    if ((h >> 11 & 63) == 0) bits |= 0x7f800001u;
    std::memcpy(&values[i], &bits, sizeof bits);
  }
  return values;
}

Status compare(const std::string& what, const std::vector<float>& got, const std::vector<float>& want) {
  size_t count = 0;
  std::string first;
  for (size_t i = 0; i < want.size(); ++i) {
    const uint32_t a = numerics::bits_of(got[i]), b = numerics::bits_of(want[i]);
    if (a != b && count++ == 0) first = fmt::format("[{}] is {:08x}, expected {:08x}", i, a, b);
  }
  if (count == 0) return {};
  return make_error(ErrorCode::kInvalidData, "{}: {} of {} differ, first {}", what, count, want.size(), first);
}

// One reduction of `count` floats that begin `shift` floats into a buffer; what lies around it stays as it was.
Status reduce_once(Rank& rank, const device::Buffer& buffer, size_t count, size_t shift, bool takes_max) {
  auto data = random_floats(count, count * 64 + shift * 32 + static_cast<size_t>(rank.host.rank()));
  std::vector<float> around(count + shift + 4), want(data);
  QD_TRY_STATUS(device::fill(buffer.get(), 0xff, around.size() * sizeof(float), rank.stream));
  auto* place = buffer.as<float>() + shift;
  QD_TRY_STATUS(device::copy_to_device(place, data.data(), count * sizeof(float), rank.stream));
  QD_TRY_STATUS(rank.peers.all_reduce(place, count, takes_max, rank.stream));
  QD_TRY_STATUS(device::copy_to_host(around.data(), buffer.get(), around.size() * sizeof(float), rank.stream));
  QD_TRY_STATUS(device::synchronize(rank.stream));
  QD_TRY_STATUS(rank.peers.check());
  QD_TRY_STATUS(takes_max ? rank.host.all_reduce_max(want) : rank.host.all_reduce_sum(want));
  std::vector<float> all(around.size());
  std::memset(all.data(), 0xff, all.size() * sizeof(float));
  std::copy(want.begin(), want.end(), all.begin() + static_cast<std::ptrdiff_t>(shift));
  return compare(fmt::format("{} of {} floats at {}", takes_max ? "max" : "sum", count, shift), around, all);
}

Status reduce_all_sizes(Rank& rank, size_t most) {
  QD_TRY(const device::Buffer buffer, device::Buffer::allocate((most + 16) * sizeof(float), rank.stream));
  for (const size_t count :
       {1u, 2u, 3u, 31u, 511u, 512u, 513u, 1000u, 1024u, 4096u, 4097u, 32'768u, 65'535u, 65'536u}) {
    if (count > most) continue;
    for (const size_t shift : {0u, 1u, 3u}) {
      for (const bool takes_max : {false, true}) QD_TRY_STATUS(reduce_once(rank, buffer, count, shift, takes_max));
    }
  }
  return {};
}

// Ranks that share a GPU must all fit on it.
int most_ranks() {
  const auto gpus = device::count();
  return gpus && *gpus >= 2 ? std::min(*gpus, 8) : 2;
}

TEST(Peer, ReductionsEqualTheHostBitForBit) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const Status done = on_ranks(most_ranks(), [](Rank& rank) { return reduce_all_sizes(rank, PeerRanks::kMostFloats); });
  EXPECT_TRUE(done) << done.error().message;
}

TEST(Peer, ManyRanksOnFewGpusEqualTheHost) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  for (const int num_ranks : {3, 4, 7, 9}) {
    // A GPU has eight queues: streams of two ranks in one of them would wait for each other.
    if (num_ranks > 6 * *device::count()) continue;
    const Status done = on_ranks(num_ranks, [](Rank& rank) { return reduce_all_sizes(rank, 4097); });
    EXPECT_TRUE(done) << num_ranks << " ranks: " << done.error().message;
  }
}

// The reductions of a round, all in one graph: sizes in an order that gives chunks different numbers of calls.
struct RoundPart {
  int64_t count;
  bool takes_max;
};
constexpr RoundPart kRound[] = {{4096, false}, {1, true}, {65'536, false}, {513, false}, {1000, true}};

Status enqueue_round(Rank& rank, const device::Buffer& data, RoundState* state, uint32_t delay_ns) {
  RoundData p{7, rank.host.rank(), rank.host.size(), 0, data.as<float>(), false};
  for (const RoundPart& part : kRound) {
    p.seed += 1;
    p.count = part.count;
    p.takes_max = part.takes_max;
    testing::fill_round(p, state, rank.stream);
    if (delay_ns != 0) testing::delay_round(p, state, delay_ns, rank.stream);
    QD_TRY_STATUS(rank.peers.all_reduce(p.data, static_cast<size_t>(p.count), p.takes_max, rank.stream));
    testing::check_round(p, state, rank.stream);
  }
  testing::next_round(state, rank.stream);
  return {};
}

Status replay_rounds(Rank& rank, int replays, uint32_t delay_ns) {
  QD_TRY(const device::Buffer data, device::Buffer::allocate(PeerRanks::kMostFloats * sizeof(float), rank.stream));
  QD_TRY(const device::Buffer memory, device::Buffer::allocate(sizeof(RoundState), rank.stream));
  auto* state = memory.as<RoundState>();
  QD_TRY_STATUS(device::fill(state, 0, sizeof(RoundState), rank.stream));
  // Outside of a graph first: kernels are loaded before anybody waits for anybody.
  QD_TRY_STATUS(device::synchronize(rank.stream));
  QD_TRY_STATUS(rank.host.barrier());
  QD_TRY_STATUS(enqueue_round(rank, data, state, 1000));
  QD_TRY_STATUS(device::synchronize(rank.stream));
  QD_TRY_STATUS(rank.host.barrier());
  QD_TRY(const device::Graph graph,
         device::Graph::capture(rank.stream, [&]() { return enqueue_round(rank, data, state, delay_ns); }));
  QD_TRY_STATUS(rank.host.barrier());
  RoundState found{};
  for (int i = 0; i < replays; ++i) {
    QD_TRY_STATUS(graph.launch(rank.stream));
    if (i % 20 == 19) QD_TRY_STATUS(device::synchronize(rank.stream));  // a full queue would block the other rank, too
  }
  QD_TRY_STATUS(device::copy_to_host(&found, state, sizeof found, rank.stream));
  QD_TRY_STATUS(device::synchronize(rank.stream));
  QD_TRY_STATUS(rank.peers.check());
  if (found.differing == 0 && found.round == static_cast<uint32_t>(replays) + 1) return {};
  return make_error(ErrorCode::kInvalidData,
                    "rank {}: {} values differ after {} rounds, first in round {}: [{}] is {:08x}, expected {:08x}",
                    rank.host.rank(), found.differing, found.round, found.first_round, found.first_index, found.found,
                    found.expected);
}

TEST(Peer, TenThousandReplaysEqualTheRankOrder) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  // Back to back on one H100 a rank waited 20 s for the other's graph; with delays between (below) they run there, too.
  if (*device::count() < most_ranks()) GTEST_SKIP() << "ranks share a GPU, where graphs need not run at once";
  const Status done = on_ranks(most_ranks(), [](Rank& rank) { return replay_rounds(rank, 10'000, 0); });
  EXPECT_TRUE(done) << done.error().message;
}

TEST(Peer, ReplaysWithDelaysOfTheirOwnEqualTheRankOrder) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const Status done = on_ranks(most_ranks(), [](Rank& rank) { return replay_rounds(rank, 2000, 30'000); });
  EXPECT_TRUE(done) << done.error().message;
}

// Every rank writes its number into a place of every other's memory; behind the barrier all are there.
TEST(Peer, ABarrierStandsBetweenWritesAndReadsOfPeers) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const Status done = on_ranks(most_ranks(), [](Rank& rank) -> Status {
    const auto n = static_cast<size_t>(rank.host.size());
    const auto own = static_cast<size_t>(rank.host.rank());
    QD_TRY(auto memory, rank.peers.share(n * sizeof(float)));
    std::vector<float> mine(1), found(n), want(n);
    QD_TRY(const device::Buffer number, device::Buffer::allocate(sizeof(float), rank.stream));
    for (int round = 0; round < 50; ++round) {
      mine[0] = static_cast<float>(100 * round) + static_cast<float>(own);
      QD_TRY_STATUS(device::copy_to_device(number.get(), mine.data(), sizeof(float), rank.stream));
      for (size_t r = 0; r < n; ++r) {
        auto* to = memory->at(static_cast<int>(r)) + own * sizeof(float);
        QD_TRY_STATUS(device::copy_on_device(to, number.get(), sizeof(float), rank.stream));
        want[r] = static_cast<float>(100 * round) + static_cast<float>(r);
      }
      QD_TRY_STATUS(rank.peers.barrier(rank.stream));
      QD_TRY_STATUS(device::copy_to_host(found.data(), memory->at(rank.host.rank()), n * sizeof(float), rank.stream));
      QD_TRY_STATUS(rank.peers.barrier(rank.stream));
      QD_TRY_STATUS(device::synchronize(rank.stream));
      QD_TRY_STATUS(compare(fmt::format("round {}", round), found, want));
    }
    return memory->close();
  });
  EXPECT_TRUE(done) << done.error().message;
}

TEST(Peer, ALostRankEndsKernelsThatWaitForIt) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const auto begin = std::chrono::steady_clock::now();
  const Status done = on_ranks(
      2,
      [](Rank& rank) -> Status {
        rank.host.set_phase(Phase::kDecode);
        QD_TRY(const device::Buffer buffer, device::Buffer::allocate(4096 * sizeof(float), rank.stream));
        QD_TRY_STATUS(rank.peers.all_reduce(buffer.as<float>(), 4096, false, rank.stream));
        QD_TRY_STATUS(device::synchronize(rank.stream));
        QD_TRY_STATUS(rank.host.barrier());
        if (rank.host.rank() == 1) return make_error(ErrorCode::kIo, "a failure on purpose");
        Status waited = rank.peers.all_reduce(buffer.as<float>(), 4096, false, rank.stream);
        if (waited) waited = rank.peers.barrier(rank.stream);
        if (waited) (void)device::synchronize(rank.stream).ok();
        if (waited) waited = rank.peers.check();
        if (waited || waited.error().code != ErrorCode::kLostRank) {
          return make_error(ErrorCode::kInvalidData, "the loss went unnoticed");
        }
        return waited;
      },
      60s);
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("a failure on purpose"), std::string::npos) << done.error().message;
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);
}

// Nobody is lost, one simply never calls: the kernel's own limit.
TEST(Peer, AKernelGivesUpWhenItsPatienceEnds) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const Status done = run_rank_threads(2, [](Communicator& host) -> Status {
    QD_TRY_STATUS(device::use(ordinal_of(host.rank())));
    QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
    QD_TRY(auto peers, PeerRanks::create(host, ordinal_of(host.rank()), stream.get(), {1000ms}));
    QD_TRY(const device::Buffer buffer, device::Buffer::allocate(4096 * sizeof(float), stream.get()));
    if (host.rank() == 0) {
      QD_TRY_STATUS(peers->all_reduce(buffer.as<float>(), 4096, false, stream.get()));
      QD_TRY_STATUS(device::synchronize(stream.get()));
      const Status checked = peers->check();
      if (checked || checked.error().message.find("gave up waiting for rank 1") == std::string::npos) {
        return make_error(ErrorCode::kInvalidData, "expected a kernel that gave up, found '{}'",
                          checked ? "no error" : checked.error().message);
      }
    }
    return peers->close();
  });
  EXPECT_TRUE(done) << done.error().message;
}

// --- Processes -------------------------------------------------------------------------------------------------------

// One rank of the test below, in a process of its own.
TEST(PeerProcess, DISABLED_OneRank) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  multi::run_launched_rank([](Communicator& host) {
    return run_rank(host, 60s, [](Rank& rank) -> Status {
      // Processes that share a GPU take turns of milliseconds.
      const bool apart = device::count() && *device::count() >= rank.host.size();
      QD_TRY_STATUS(reduce_all_sizes(rank, apart ? PeerRanks::kMostFloats : 513));
      return replay_rounds(rank, apart ? 1000 : 5, 0);
    });
  });
}

TEST(PeerProcess, RanksThatAreProcessesEqualTheHost) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  multi::expect_launched_ranks(most_ranks(), "PeerProcess.DISABLED_OneRank");
}

}  // namespace
}  // namespace quadrille::parallel
