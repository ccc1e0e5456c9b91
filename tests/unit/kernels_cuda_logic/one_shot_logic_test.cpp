// SPDX-License-Identifier: Apache-2.0
// The protocol of the one-shot reduction, run by threads of the CPU that are ranks: words, places and epochs are those
// of the kernel. Also the flags of the barrier.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/cuda/ranks/one_shot_logic.h"

namespace quadrille::kernels::cuda {
namespace {

uint32_t mix(uint64_t a, uint64_t b) {
  uint64_t z = a * 0x9e3779b97f4a7c15ull + b * 0xd1342543de82ef95ull + 0x632be59bd9b4e019ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<uint32_t>((z ^ (z >> 31)) >> 13);
}
float value_at(int rank, int call, int64_t i) {
  const uint32_t bits = mix(static_cast<uint64_t>(rank) << 32 | static_cast<uint32_t>(call), static_cast<uint64_t>(i));
  return numerics::float_of(bits % 7 == 0 ? bits : (bits & 0x81ffffffu) | 0x3a000000u);
}

TEST(OneShotLogic, AWordKeepsItsFloatAndItsEpoch) {
  for (const uint32_t epoch : {0u, 1u, 2u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
    for (const uint32_t bits : {0u, 0x80000000u, 1u, 0x7fc00001u, 0xffffffffu}) {
      const uint64_t word = word_of(numerics::float_of(bits), epoch);
      EXPECT_TRUE(is_of(word, epoch));
      EXPECT_FALSE(is_of(word, epoch + 2));
      EXPECT_FALSE(is_of(word, epoch - 2));
      EXPECT_EQ(numerics::bits_of(value_of(word)), bits);
    }
  }
}

TEST(OneShotLogic, EveryWordHasAPlaceOfItsOwnInsideOfTheInbox) {
  for (const int ranks : {2, 3, 8, 16}) {
    std::vector<bool> taken(one_shot_inbox_bytes(ranks) / sizeof(uint64_t), false);
    size_t count = 0;
    for (const uint32_t epoch : {6u, 7u}) {
      for (int source = 0; source < ranks; ++source) {
        for (int64_t chunk = 0; chunk < kOneShotChunks; ++chunk) {
          for (int thread = 0; thread < kOneShotThreads; ++thread) {
            const int64_t place = word_place(epoch, ranks, source, chunk, thread);
            ASSERT_EQ(place % 2, 0);  // pairs are on 16 bytes
            for (int64_t i = place; i < place + 2; ++i) {
              ASSERT_LT(static_cast<size_t>(i), taken.size());
              ASSERT_FALSE(taken[static_cast<size_t>(i)]);
              taken[static_cast<size_t>(i)] = true;
              ++count;
            }
          }
        }
      }
    }
    EXPECT_EQ(count, taken.size());
  }
}

TEST(OneShotLogic, ChunksCoverTheData) {
  EXPECT_EQ(chunks_of(1), 1);
  EXPECT_EQ(chunks_of(kOneShotChunk), 1);
  EXPECT_EQ(chunks_of(kOneShotChunk + 1), 2);
  EXPECT_EQ(chunks_of(kOneShotFloats), kOneShotChunks);
}

TEST(OneShotLogic, AFlagHasComeAlsoBehindTheWrapAround) {
  EXPECT_FALSE(has_come(0, 1));
  EXPECT_TRUE(has_come(1, 1));
  EXPECT_TRUE(has_come(2, 1));
  EXPECT_FALSE(has_come(0xffffffffu, 0));
  EXPECT_TRUE(has_come(0, 0));
  EXPECT_TRUE(has_come(1, 0));
  EXPECT_TRUE(has_come(0, 0xffffffffu));
  EXPECT_FALSE(has_come(0xfffffffeu, 0xffffffffu));
}

// --- Ranks as threads ------------------------------------------------------------------------------------------------

struct World {
  World(int ranks, uint32_t first_epoch) : num_ranks(ranks) {
    for (int r = 0; r < ranks; ++r) {
      inbox.push_back(std::make_unique<std::atomic<uint64_t>[]>(one_shot_inbox_bytes(ranks) / sizeof(uint64_t)));
      epochs.emplace_back(static_cast<size_t>(kOneShotChunks), first_epoch);
    }
  }
  int num_ranks;
  std::vector<std::unique_ptr<std::atomic<uint64_t>[]>> inbox;
  std::vector<std::vector<uint32_t>> epochs;
};

// What a block does: all its threads send, then all receive.
void run_block(World& world, int rank, int64_t chunk, int64_t count, std::vector<float>& data) {
  uint32_t& last = world.epochs[static_cast<size_t>(rank)][static_cast<size_t>(chunk)];
  const uint32_t epoch = next_epoch(last);
  const auto own = [&](int64_t i) { return i < count ? data[static_cast<size_t>(i)] : 0.0f; };
  for (int ahead = 1; ahead < world.num_ranks; ++ahead) {
    auto& to = world.inbox[static_cast<size_t>((rank + ahead) % world.num_ranks)];
    for (int t = 0; t < kOneShotThreads; ++t) {
      const int64_t place = word_place(epoch, world.num_ranks, rank, chunk, t);
      for (int64_t w = 0; w < 2; ++w) {
        to[static_cast<size_t>(place + w)].store(word_of(own(chunk * kOneShotChunk + 2 * t + w), epoch),
                                                 std::memory_order_relaxed);
      }
    }
  }
  for (int t = 0; t < kOneShotThreads; ++t) {
    for (int64_t w = 0; w < 2; ++w) {
      const int64_t i = chunk * kOneShotChunk + 2 * t + w;
      float sum = 0;
      for (int r = 0; r < world.num_ranks; ++r) {
        float part = own(i);
        if (r != rank) {
          const auto place = static_cast<size_t>(word_place(epoch, world.num_ranks, r, chunk, t) + w);
          uint64_t word = 0;
          while (!is_of(word = world.inbox[static_cast<size_t>(rank)][place].load(std::memory_order_relaxed), epoch)) {
            std::this_thread::yield();
          }
          part = value_of(word);
        }
        sum = r == 0 ? part : numerics::add_rank(sum, part);
      }
      if (i < count) data[static_cast<size_t>(i)] = numerics::canonical(sum);
    }
  }
  last = epoch;
}

// Calls of changing sizes, so that chunks have different epochs; the order of blocks and pauses are each rank's own.
void run_rank(World& world, int rank, int num_calls, std::atomic<int64_t>& differing) {
  for (int call = 0; call < num_calls; ++call) {
    const int64_t count = 1 + mix(99, static_cast<uint64_t>(call)) % (3 * kOneShotChunk);
    std::vector<float> data(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) data[static_cast<size_t>(i)] = value_at(rank, call, i);
    if (mix(static_cast<uint64_t>(rank), static_cast<uint64_t>(call)) % 4 == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    for (int64_t chunk = 0; chunk < chunks_of(count); ++chunk) run_block(world, rank, chunk, count, data);
    for (int64_t i = 0; i < count; ++i) {
      float want = value_at(0, call, i);
      for (int r = 1; r < world.num_ranks; ++r) want = numerics::add_rank(want, value_at(r, call, i));
      if (numerics::bits_of(data[static_cast<size_t>(i)]) != numerics::bits_of(numerics::canonical(want))) ++differing;
    }
  }
}

TEST(OneShotLogic, RanksThatRunAheadNeverOverwriteWhatIsNotRead) {
  for (const int ranks : {2, 3}) {
    World world(ranks, 0xffffffe0u);  // epochs wrap around on the way
    std::atomic<int64_t> differing{0};
    std::vector<std::jthread> threads;
    for (int r = 0; r < ranks; ++r) {
      threads.emplace_back([&, r] { run_rank(world, r, 120, differing); });
    }
    threads.clear();
    EXPECT_EQ(differing.load(), 0) << ranks << " ranks";
    EXPECT_LT(world.epochs[0][0], 1000u) << "no wrap-around was tested";
  }
}

}  // namespace
}  // namespace quadrille::kernels::cuda
