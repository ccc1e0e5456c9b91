// SPDX-License-Identifier: Apache-2.0
// What the tests of the CPU tables share: the tables that run here, random data, bitwise comparison, poisoned outputs.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "kernels/cpu/tables.h"

namespace quadrille::kernels::test {

// 64-byte aligned like the buffers of the engine, and of exactly `size` elements.
template <typename T>
using Buffer = std::vector<T>;

inline constexpr uint32_t kPoison = 0xdeadbeefu;

inline Buffer<float> poisoned(int64_t size) {
  return Buffer<float>(static_cast<size_t>(size), std::bit_cast<float>(kPoison));
}

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  int64_t below(int64_t bound) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(bound)); }
  uint16_t bf16() { return static_cast<uint16_t>(std::bit_cast<uint32_t>(normal()) >> 16); }
  Buffer<float> normals(int64_t size) {
    Buffer<float> v(static_cast<size_t>(size));
    for (float& x : v) x = normal();
    return v;
  }
  Buffer<uint16_t> bf16s(int64_t size) {
    Buffer<uint16_t> v(static_cast<size_t>(size));
    for (uint16_t& x : v) x = bf16();
    return v;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
};

// Number of elements that differ in bits, and the first of them in words.
template <typename T>
::testing::AssertionResult same_bits(const Buffer<T>& expected, const Buffer<T>& found) {
  if (expected.size() != found.size()) return ::testing::AssertionFailure() << "sizes differ";
  if (expected.empty() || std::memcmp(expected.data(), found.data(), expected.size() * sizeof(T)) == 0) {
    return ::testing::AssertionSuccess();
  }
  size_t count = 0, first = 0;
  for (size_t i = expected.size(); i-- > 0;) {
    if (std::memcmp(&expected[i], &found[i], sizeof(T)) != 0) ++count, first = i;
  }
  return ::testing::AssertionFailure() << count << " of " << expected.size() << " differ, first at " << first
                                       << ": expected " << +expected[first] << ", found " << +found[first];
}

// One test body per table: skipped with the table's own reason where the machine cannot run it.
class CpuTable : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override {
    const std::string reason = GetParam()->unavailable_reason();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  const KernelTable& table() const { return *GetParam(); }
};

inline std::string table_name(const ::testing::TestParamInfo<const KernelTable*>& param) {
  return param.param->name;
}

inline auto every_cpu_table() {
  return ::testing::Values(&cpu::kGenericTable, &cpu::kAvx2Table, &cpu::kAvx512Table, &cpu::kAmxTable);
}

// Pools of 1, 2, 3 and 7 threads, and an arena each.
struct Contexts {
  static constexpr auto kAll = ThreadPool::Start::kAll;  // also where there are fewer cores
  ThreadPool pools[4] = {ThreadPool(1), ThreadPool(2, kAll), ThreadPool(3, kAll), ThreadPool(7, kAll)};
  Arena arena;

  // body(context) with every pool.
  template <typename Body>
  void each(Body&& body) {
    for (ThreadPool& pool : pools) {
      SCOPED_TRACE(std::to_string(pool.num_threads()) + " threads");
      body(KernelContext{&pool, &arena});
      arena.reset();
    }
  }
};

}  // namespace quadrille::kernels::test
