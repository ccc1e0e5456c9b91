// SPDX-License-Identifier: Apache-2.0
// Reductions over ranks on the device: the kernel on one GPU, and NCCL with one rank thread a GPU, against the host's
// collectives bit by bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "device/device.h"
#include "device/launched_ranks.h"
#include "kernels/api/device_table.h"
#include "parallel/nccl.h"
#include "parallel/ordered_reduce.h"
#include "parallel/thread_group.h"

namespace quadrille::parallel {
namespace {

// Floats of every kind: magnitudes far apart, subnormals, zeros of both signs, infinities, NaN.
std::vector<float> random_floats(size_t count, uint64_t seed) {
  std::vector<float> values(count);
  uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (float& value : values) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    auto bits = static_cast<uint32_t>(state >> 32);
    // Mostly exponents near each other, so that sums round; sometimes any bits at all.
    if (state >> 8 & 31) bits = (bits & 0x81ffffffu) | 0x3a000000u;
    std::memcpy(&value, &bits, sizeof value);
  }
  return values;
}

std::string first_difference(const std::vector<float>& got, const std::vector<float>& want) {
  size_t count = 0;
  std::string first;
  for (size_t i = 0; i < want.size(); ++i) {
    uint32_t a, b;
    std::memcpy(&a, &got[i], sizeof a);
    std::memcpy(&b, &want[i], sizeof b);
    if (a == b) continue;
    if (count++ == 0) first = fmt::format("[{}] is {:08x}, expected {:08x}", i, a, b);
  }
  return count == 0 ? "" : fmt::format("{} of {} differ, first {}", count, want.size(), first);
}

TEST(ReduceRanks, EqualsTheHostBitForBit) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  ASSERT_TRUE(device::use(0));
  const auto stream = device::OwnedStream::create();
  const auto table = kernels::device_table();
  ASSERT_TRUE(stream && table);
  for (const int ranks : {1, 2, 3, 8, 17}) {
    for (const size_t count : {0u, 1u, 3u, 4u, 1023u, 4096u, 300'001u}) {
      for (const size_t pitch : {count, (count + 19) / 16 * 16}) {
        for (const bool takes_max : {false, true}) {
          SCOPED_TRACE(fmt::format("{} ranks, {} floats, pitch {}, max {}", ranks, count, pitch, takes_max));
          const auto n = static_cast<size_t>(ranks);
          const auto parts = random_floats(std::max<size_t>(n * pitch, 1), count + n);
          auto memory = device::Buffer::allocate((parts.size() + count + 16) * sizeof(float), stream->get());
          ASSERT_TRUE(memory) << memory.error().message;
          const size_t out_at = (parts.size() + 3) / 4 * 4;
          ASSERT_TRUE(device::fill(memory->get(), 0xff, memory->size_bytes(), stream->get()));
          ASSERT_TRUE(device::copy_to_device(memory->get(), parts.data(), parts.size() * sizeof(float), stream->get()));
          (*table)->reduce_ranks({memory->as<float>(), static_cast<int64_t>(pitch), ranks, takes_max,
                                  static_cast<int64_t>(count), memory->as<float>() + out_at},
                                 stream->get());
          std::vector<float> got(count + 1), want(count);
          const size_t bytes = (count + 1) * sizeof(float);
          ASSERT_TRUE(device::copy_to_host(got.data(), memory->as<float>() + out_at, bytes, stream->get()));
          ASSERT_TRUE(device::synchronize(stream->get()));
          std::vector<const std::byte*> views;
          for (size_t r = 0; r < n; ++r) views.push_back(reinterpret_cast<const std::byte*>(parts.data() + r * pitch));
          (takes_max ? max_in_rank_order : sum_in_rank_order)(views, 0, count, want.data());
          EXPECT_EQ(first_difference(got, want), "");
          uint32_t behind;
          std::memcpy(&behind, &got[count], sizeof behind);
          EXPECT_EQ(behind, 0xffffffffu) << "written behind the end";
        }
      }
    }
  }
}

// --- NCCL ------------------------------------------------------------------------------------------------------------

// One rank: its GPU, stream and both communicators.
struct Rank {
  Communicator& host;
  DeviceCommunicator& gpu;
  device::Stream stream;

  Result<device::Buffer> upload(const std::vector<float>& data) const {
    QD_TRY(device::Buffer buffer, device::Buffer::allocate(data.size() * sizeof(float) + 16, stream));
    QD_TRY_STATUS(device::copy_to_device(buffer.get(), data.data(), data.size() * sizeof(float), stream));
    return buffer;
  }
  Result<std::vector<float>> download(const device::Buffer& buffer, size_t count) const {
    std::vector<float> data(count);
    QD_TRY_STATUS(device::copy_to_host(data.data(), buffer.get(), count * sizeof(float), stream));
    QD_TRY_STATUS(device::synchronize(stream));
    QD_TRY_STATUS(gpu.check());
    return data;
  }
};

Status on_gpu(Communicator& host, SmallReduction small, const std::function<Status(Rank&)>& body) {
  QD_TRY_STATUS(device::use(host.rank()));
  QD_TRY(const device::OwnedStream stream, device::OwnedStream::create());
  NcclOptions options;
  options.scratch_bytes = 1 << 20;  // small: long vectors go through in steps
  options.small = small;
  QD_TRY(auto gpu, nccl_communicator(host, host.rank(), stream.get(), options));
  Rank rank{host, *gpu, stream.get()};
  QD_TRY_STATUS(body(rank));
  QD_TRY_STATUS(device::synchronize(stream.get()));
  return gpu->close();
}
Status on_all_gpus(SmallReduction small, const std::function<Status(Rank&)>& body) {
  QD_TRY(const int gpus, device::count());
  return run_rank_threads(std::min(gpus, 8), [&](Communicator& host) { return on_gpu(host, small, body); });
}
// Small messages over NCCL, then in one shot where the GPUs reach each other's memory.
Status on_all_gpus(const std::function<Status(Rank&)>& body) {
  QD_TRY_STATUS(on_all_gpus(SmallReduction::kNccl, body));
  return on_all_gpus(SmallReduction::kAuto, body);
}

Status compare(const char* what, size_t count, const std::vector<float>& got, const std::vector<float>& want) {
  const std::string difference = first_difference(got, want);
  if (difference.empty()) return {};
  return make_error(ErrorCode::kInvalidData, "{} of {}: {}", what, count, difference);
}

constexpr size_t kCounts[] = {1, 15, 4096, 65'536, 65'537, 1'000'003};

#define SKIP_WITHOUT_TWO_GPUS()                                                   \
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;     \
  if (auto gpus = device::count(); !gpus || *gpus < 2) GTEST_SKIP() << "one GPU"; \
  static_assert(true)

Status reductions_equal_the_host(Rank& rank) {
  for (const size_t count : kCounts) {
    for (const bool takes_max : {false, true}) {
      auto data = random_floats(count, count * 64 + static_cast<size_t>(rank.host.rank()));
      QD_TRY(const device::Buffer buffer, rank.upload(data));
      QD_TRY_STATUS(takes_max ? rank.gpu.all_reduce_max(buffer.as<float>(), count, rank.stream)
                              : rank.gpu.all_reduce_sum(buffer.as<float>(), count, rank.stream));
      QD_TRY_STATUS(takes_max ? rank.host.all_reduce_max(data) : rank.host.all_reduce_sum(data));
      QD_TRY(const std::vector<float> got, rank.download(buffer, count));
      QD_TRY_STATUS(compare(takes_max ? "all_reduce_max" : "all_reduce_sum", count, got, data));
    }
  }
  return {};
}

TEST(Nccl, ReductionsEqualTheHostBitForBit) {
  SKIP_WITHOUT_TWO_GPUS();
  const Status done = on_all_gpus(reductions_equal_the_host);
  EXPECT_TRUE(done) << done.error().message;
}

Status uneven_parts_equal_the_host(Rank& rank) {
  const auto n = static_cast<size_t>(rank.host.size());
  const auto own = static_cast<size_t>(rank.host.rank());
  for (const size_t count : kCounts) {
    std::vector<size_t> counts(n, 0);  // the first ranks little or nothing, the last the rest
    counts[1] = count / 3;
    counts.back() += count - count / 3;
    const auto in = random_floats(count, count + own);
    std::vector<float> want(counts[own]);
    QD_TRY(const device::Buffer from, rank.upload(in));
    QD_TRY(const device::Buffer to, rank.upload(std::vector<float>(count)));
    QD_TRY_STATUS(rank.gpu.reduce_scatter_sum(from.as<float>(), counts, to.as<float>(), rank.stream));
    QD_TRY_STATUS(rank.host.reduce_scatter_sum(in, counts, want));
    QD_TRY(const std::vector<float> got, rank.download(to, want.size()));
    QD_TRY_STATUS(compare("reduce_scatter_sum", count, got, want));

    std::vector<size_t> bytes;
    for (const size_t c : counts) bytes.push_back(c * sizeof(float));
    std::vector<float> all(count);
    const auto mine = std::as_bytes(std::span(in)).first(bytes[own]);
    QD_TRY_STATUS(rank.gpu.all_gather_v(from.get(), bytes, to.get(), rank.stream));
    QD_TRY_STATUS(rank.host.all_gather_v(mine, bytes, std::as_writable_bytes(std::span(all))));
    QD_TRY(const std::vector<float> gathered, rank.download(to, count));
    QD_TRY_STATUS(compare("all_gather_v", count, gathered, all));
  }
  return {};
}

TEST(Nccl, UnevenPartsEqualTheHost) {
  SKIP_WITHOUT_TWO_GPUS();
  const Status done = on_all_gpus(uneven_parts_equal_the_host);
  EXPECT_TRUE(done) << done.error().message;
}

Status tokens_equal_the_host(Rank& rank) {
  const auto n = static_cast<size_t>(rank.host.size());
  const auto own = static_cast<size_t>(rank.host.rank());
  // From r to s: 1000 * r + 10 * s floats, nothing to the next rank.
  const auto floats = [&](size_t r, size_t s) { return s == (r + 1) % n ? 0 : 1000 * r + 10 * s; };
  std::vector<size_t> send(n), recv(n);
  size_t sent = 0, received = 0;
  for (size_t p = 0; p < n; ++p) {
    sent += floats(own, p), received += floats(p, own);
    send[p] = floats(own, p) * sizeof(float), recv[p] = floats(p, own) * sizeof(float);
  }
  const auto data = random_floats(sent, own);
  std::vector<float> want(received);
  QD_TRY(const device::Buffer from, rank.upload(data));
  QD_TRY(const device::Buffer to, rank.upload(std::vector<float>(received)));
  QD_TRY_STATUS(rank.gpu.all_to_all_v(from.get(), send, to.get(), recv, rank.stream));
  QD_TRY_STATUS(
      rank.host.all_to_all_v(std::as_bytes(std::span(data)), send, std::as_writable_bytes(std::span(want)), recv));
  QD_TRY(const std::vector<float> got, rank.download(to, received));
  QD_TRY_STATUS(compare("all_to_all_v", received, got, want));
  // Every rank names the same size, whatever it has received.
  auto first = random_floats(4, 100 + own);
  QD_TRY(const device::Buffer four, rank.upload(first));
  QD_TRY_STATUS(rank.gpu.broadcast(four.get(), 16, 1, rank.stream));
  QD_TRY_STATUS(rank.host.broadcast(std::as_writable_bytes(std::span(first)), 1));
  QD_TRY(const std::vector<float> told, rank.download(four, 4));
  QD_TRY_STATUS(compare("broadcast", 4, told, first));
  return rank.gpu.barrier(rank.stream);
}

TEST(Nccl, TokensOfAllToAllEqualTheHost) {
  SKIP_WITHOUT_TWO_GPUS();
  const Status done = on_all_gpus(tokens_equal_the_host);
  EXPECT_TRUE(done) << done.error().message;
}

TEST(Nccl, RunsInsideOfAGraph) {
  SKIP_WITHOUT_TWO_GPUS();
  const Status done = on_all_gpus([](Rank& rank) -> Status {
    const size_t count = 5000;
    auto data = random_floats(count, static_cast<size_t>(rank.host.rank()) + 5);
    QD_TRY(const device::Buffer buffer, rank.upload(data));
    // The first call connects the GPUs, which no graph can hold.
    QD_TRY_STATUS(rank.gpu.all_reduce_sum(buffer.as<float>(), count, rank.stream));
    QD_TRY_STATUS(rank.gpu.all_reduce_max(buffer.as<float>(), count, rank.stream));
    QD_TRY(const device::Graph graph, device::Graph::capture(rank.stream, [&]() -> Status {
             QD_TRY_STATUS(rank.gpu.all_reduce_sum(buffer.as<float>(), count, rank.stream));
             return rank.gpu.all_reduce_max(buffer.as<float>(), count, rank.stream);
           }));
    QD_TRY_STATUS(rank.host.all_reduce_sum(data));
    QD_TRY_STATUS(rank.host.all_reduce_max(data));
    for (int replay = 0; replay < 3; ++replay) {
      QD_TRY_STATUS(graph.launch(rank.stream));
      QD_TRY_STATUS(rank.host.all_reduce_sum(data));
      QD_TRY_STATUS(rank.host.all_reduce_max(data));
    }
    QD_TRY(const std::vector<float> got, rank.download(buffer, count));
    return compare("graph", count, got, data);
  });
  EXPECT_TRUE(done) << done.error().message;
}

void lose_a_rank(SmallReduction small) {
  const Status done = on_all_gpus(small, [](Rank& rank) -> Status {
    rank.host.set_phase(Phase::kDecode);
    QD_TRY(const device::Buffer buffer, rank.upload(std::vector<float>(1000)));
    QD_TRY_STATUS(rank.gpu.all_reduce_sum(buffer.as<float>(), 1000, rank.stream));
    QD_TRY_STATUS(device::synchronize(rank.stream));
    QD_TRY_STATUS(rank.host.barrier());
    if (rank.host.rank() == 1) return make_error(ErrorCode::kIo, "a failure on purpose");
    // Its kernel waits on the device for a rank that never comes, until the communicator is aborted.
    Status reduced = rank.gpu.all_reduce_sum(buffer.as<float>(), 1000, rank.stream);
    if (reduced) (void)device::synchronize(rank.stream).ok();
    Status checked = reduced ? rank.gpu.check() : reduced;
    if (checked || checked.error().code != ErrorCode::kLostRank) {
      return make_error(ErrorCode::kInvalidData, "the loss went unnoticed");
    }
    return {};
  });
  ASSERT_FALSE(done);
  EXPECT_NE(done.error().message.find("a failure on purpose"), std::string::npos) << done.error().message;
}

TEST(Nccl, ALostRankEndsTheOthersEvenInsideOfAKernel) {
  SKIP_WITHOUT_TWO_GPUS();
  lose_a_rank(SmallReduction::kNccl);
  lose_a_rank(SmallReduction::kAuto);
}

// --- Processes -------------------------------------------------------------------------------------------------------

// One rank of the test below, in a process of its own.
TEST(NcclProcess, DISABLED_OneRank) {
  SKIP_WITHOUT_TWO_GPUS();
  const auto all_collectives = [](Rank& rank) -> Status {
    QD_TRY_STATUS(reductions_equal_the_host(rank));
    QD_TRY_STATUS(uneven_parts_equal_the_host(rank));
    return tokens_equal_the_host(rank);
  };
  multi::run_launched_rank([&](Communicator& host) -> Status {
    QD_TRY_STATUS(on_gpu(host, SmallReduction::kNccl, all_collectives));
    return on_gpu(host, SmallReduction::kAuto, all_collectives);
  });
}

TEST(NcclProcess, CollectivesOfProcessesEqualTheHost) {
  SKIP_WITHOUT_TWO_GPUS();
  multi::expect_launched_ranks(std::min(*device::count(), 8), "NcclProcess.DISABLED_OneRank");
}

}  // namespace
}  // namespace quadrille::parallel
