// SPDX-License-Identifier: Apache-2.0
// The greedy choice and its log-probability: ties, signed zeros, masked ids, rows that have no token.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>

#include "device/compare_bits.h"
#include "device/device_memory.h"
#include "kernels/api/device_table.h"
#include "numerics/sampling.h"

namespace quadrille {
namespace {

using testing::must;
using testing::on_host;
using testing::PoolMemory;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The rule of engine/sampler.h; -1: no token.
int32_t greedy_of(const float* row, int64_t vocab) {
  float max = -kInfinity;
  for (int64_t i = 0; i < vocab; ++i) {
    if (!(row[i] < kInfinity)) return -1;
    max = row[i] > max ? row[i] : max;
  }
  if (max == -kInfinity) return -1;
  return static_cast<int32_t>(std::find(row, row + vocab, max) - row);
}
float logprob_of(const float* row, int64_t vocab, int32_t id) {
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += numerics::reproducible_exp(static_cast<double>(row[i]) - row[id]);
  return static_cast<float>(0.0 - numerics::reproducible_log(sum));
}

std::vector<float> rows_of(int64_t rows, int64_t vocab, int64_t pitch) {
  std::mt19937 random(static_cast<uint32_t>(vocab));
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> logits(static_cast<size_t>(rows * pitch), kInfinity);  // pads would be chosen
  for (int64_t r = 0; r < rows; ++r) {
    float* row = &logits[static_cast<size_t>(r * pitch)];
    for (int64_t i = 0; i < vocab; ++i) row[i] = normal(random);
    if (r % 8 == 1) row[vocab - 1] = row[vocab / 2] = 40.0f;                // a tie
    if (r % 8 == 2) std::fill_n(row, vocab, -0.0f), row[vocab / 3] = 0.0f;  // equal zeros: id 0
    if (r % 8 == 3) row[vocab / 2] = std::nanf("");
    if (r % 8 == 4) row[0] = kInfinity;
    if (r % 8 == 5) std::fill_n(row, vocab, -kInfinity);
    if (r % 8 == 6) std::fill_n(row, vocab, -kInfinity), row[vocab - 1] = -1e30f;
  }
  return logits;
}

TEST(SampleTest, GreedyIsTheLowestIdOfTheLargest) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const auto owned = must(device::OwnedStream::create());
  const device::Stream stream = owned.get();
  const kernels::DeviceTable& table = *must(kernels::device_table());
  for (const int64_t vocab : {1, 7, 512, 4096, 50304, 151936}) {
    SCOPED_TRACE(fmt::format("vocabulary {}", vocab));
    const int64_t rows = 17, pitch = vocab + 3;
    const auto logits = rows_of(rows, vocab, pitch);
    PoolMemory memory;
    std::vector<int32_t> slot, expected, ids(40, -7);
    for (int64_t r = 0; r < rows; ++r) slot.push_back(r == 9 ? -1 : static_cast<int32_t>(2 * r));
    kernels::DeviceGreedy p;
    p.num_rows = rows;
    p.vocab_size = vocab;
    p.pitch = pitch;
    p.logits = memory.copy_of(logits, stream);
    p.token = memory.take<int32_t>(rows, 4, stream);
    p.token_at = memory.copy_of(ids, stream);
    p.slot = memory.copy_of(slot, stream);
    p.logprob = memory.take<float>(rows, 4, stream);
    p.status = memory.copy_of(std::vector<uint32_t>{0}, stream);
    table.greedy(p, stream);
    const auto logprob = on_host<float>(p.logprob, rows, stream);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = &logits[static_cast<size_t>(r * pitch)];
      expected.push_back(greedy_of(row, vocab));
      if (slot[r] >= 0) ids[slot[r]] = expected.back();
      if (expected.back() < 0) {
        EXPECT_TRUE(std::isnan(logprob[r])) << r;
        continue;
      }
      // The sums differ in their order alone, by less than 2^-30: at most the neighbour of the rounded result.
      const float exact = logprob_of(row, vocab, expected.back());
      EXPECT_GE(logprob[r], std::nextafterf(exact, -kInfinity)) << r;
      EXPECT_LE(logprob[r], std::nextafterf(exact, kInfinity)) << r;
    }
    EXPECT_EQ(on_host<int32_t>(p.token, rows, stream), expected);
    EXPECT_EQ(on_host<int32_t>(p.token_at, 40, stream), ids);
    EXPECT_EQ(on_host<uint32_t>(p.status, 1, stream)[0], kernels::kStatusBadLogits);
    EXPECT_EQ(memory.harmed(stream), "");
    if (HasFailure()) return;
  }
}

// engine/sampler.h, slowly: every id ranked, one filter after the other, then the draw.
int32_t drawn_of(const float* row, int64_t vocab, const kernels::SampleRule& rule) {
  const int32_t best = greedy_of(row, vocab);
  if (best < 0 || rule.temperature == 0) return best;
  std::vector<double> weight;
  std::vector<int32_t> ranked;
  for (int64_t i = 0; i < vocab; ++i) {
    weight.push_back(static_cast<double>(numerics::weight_steps(row[i], row[best], rule.temperature)) *
                     numerics::kWeightGrid);
    if (weight.back() > 0) ranked.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(ranked.begin(), ranked.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
  if (rule.top_k > 0 && static_cast<size_t>(rule.top_k) < ranked.size()) {
    ranked.resize(static_cast<size_t>(rule.top_k));
  }
  double all = 0;
  for (const int32_t id : ranked) all += weight[id];
  if (rule.top_p < 1) {
    double running = 0;
    size_t count = 0;
    while (count < ranked.size()) {
      running += weight[ranked[count++]];
      if (running >= double{rule.top_p} * all) break;
    }
    ranked.resize(count);
  }
  std::erase_if(ranked, [&](int32_t id) { return weight[id] < rule.min_p; });
  std::sort(ranked.begin(), ranked.end());
  all = 0;
  for (const int32_t id : ranked) all += weight[id];
  const double target = numerics::uniform_draw(rule.seed, rule.index) * all;
  double running = 0;
  for (const int32_t id : ranked) {
    running += weight[id];
    if (running > target) return id;
  }
  return ranked.back();
}

TEST(SampleTest, DrawsTheTokensOfTheDefinition) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const auto owned = must(device::OwnedStream::create());
  const device::Stream stream = owned.get();
  const kernels::DeviceTable& table = *must(kernels::device_table());
  const kernels::SampleRule rules[] = {
      {1.0f, 0, 1.0f, 0, 1, 0},        {0.7f, 40, 1.0f, 0, 2, 5}, {1.0f, 0, 0.9f, 0, 3, 1},
      {1.3f, 50, 0.5f, 0.01f, 4, 2},   {0.0f, 5, 0.5f, 0, 5, 3},  {2.0f, 0, 0.999f, 0.1f, 6, 1ull << 40},
      {1.0f, 1, 1.0f, 0, 7, 0},        {1.0f, 0, 0.0f, 0, 8, 0},  {1e-3f, 3, 0.9f, 0, 9, 0},
      {5.0f, 1 << 30, 1.0f, 0, 10, 1},
  };
  for (const int64_t vocab : {1, 7, 1000, 50304}) {
    const int64_t rows = 80, pitch = vocab + 1;
    auto logits = rows_of(rows, vocab, pitch);
    // Ties that the filters cut through.
    for (int64_t i = 0; i < vocab; ++i) logits[static_cast<size_t>(7 * pitch + i)] = static_cast<float>(i % 3);
    std::vector<kernels::SampleRule> of_rows;
    std::vector<int32_t> expected;
    for (int64_t r = 0; r < rows; ++r) {
      of_rows.push_back(rules[r % 10]);
      of_rows.back().index += static_cast<uint64_t>(r);
      expected.push_back(drawn_of(&logits[static_cast<size_t>(r * pitch)], vocab, of_rows.back()));
    }
    PoolMemory memory;
    kernels::DeviceSample p;
    p.num_rows = rows;
    p.vocab_size = vocab;
    p.pitch = pitch;
    p.logits = memory.copy_of(logits, stream);
    p.rules = memory.copy_of(of_rows, stream);
    p.token = memory.take<int32_t>(rows, 4, stream);
    p.status = memory.copy_of(std::vector<uint32_t>{0}, stream);
    table.sample(p, stream);
    EXPECT_EQ(on_host<int32_t>(p.token, rows, stream), expected) << "vocabulary " << vocab;
    EXPECT_EQ(on_host<uint32_t>(p.status, 1, stream)[0], kernels::kStatusBadLogits);
    EXPECT_EQ(memory.harmed(stream), "");
  }
}

}  // namespace
}  // namespace quadrille
