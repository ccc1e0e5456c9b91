// SPDX-License-Identifier: Apache-2.0
// The device preparation against the CPU's, byte for byte: dialects, arithmetics, groups, shapes, one and two parts,
// sources on the device and on the host, any number of experts, guard pages; status bits.
#include <gtest/gtest.h>

#include <cstring>

#include "device/compare_bits.h"
#include "device/guarded_memory.h"
#include "device/prepare_case.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::W4Source;

constexpr W4Source kSources[] = {W4Source::kUint4b8, W4Source::kInt4, W4Source::kInt8};
constexpr Numerics kBoth[] = {Numerics::kExact, Numerics::kVllm};
constexpr int64_t kGroups[] = {32, 64, 128, 0};

// All dialects from the given places against one oracle; stops at the first difference.
template <typename MemoryKind>
void compare(const PrepareStack& s, std::initializer_list<Place> places, const PrepareEngine& engine,
             ThreadPool* pool) {
  const PreparedBytes expected = prepare_on_cpu(s, pool);
  for (const W4Source source : kSources) {
    const PrepareImage image(s, source);
    for (const Place place : places) {
      SCOPED_TRACE(
          fmt::format("{}, dialect {}, place {}", s.name(), static_cast<int>(source), static_cast<int>(place)));
      MemoryKind memory;
      const PreparedBytes found = prepare_on_gpu(s, image, source, place, memory, engine);
      ASSERT_EQ(found.status, 0u);
      ASSERT_EQ(bit_differences(found.weights, expected.weights, s.map().record_bytes()), "");
      ASSERT_EQ(bit_differences(found.channel_scale, expected.channel_scale, s.map().padded_n()), "");
      ASSERT_EQ(bit_differences(found.bias, expected.bias, s.map().padded_n()), "");
      ASSERT_EQ(found.harmed, "");
    }
  }
}

// body(stack) for every group size, arithmetic and number of parts, until a comparison fails.
template <typename Body>
void for_all_forms(const PrepareStack& shape, const Body& body) {
  for (const int64_t group : kGroups) {
    for (int i = 0; i < 4; ++i) {
      PrepareStack s = shape;
      s.group = group;
      s.numerics = kBoth[i % 2];
      s.num_parts = 1 + i / 2;
      body(s);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Experts, rows of a part, k: rows that fill no block, k that fills no record or no 16 bytes, one and several launches.
constexpr PrepareStack kStacks[] = {{1, 8, 32},    {3, 24, 64},    {3, 8, 8},      {3, 72, 200},
                                    {1, 640, 96},  {1, 704, 1408}, {1, 1408, 512}, {1, 2880, 288},
                                    {3, 16, 2880}, {1, 24, 4096},  {2, 8, 7168},   {5, 40, 2112},
                                    {65, 8, 40},   {130, 24, 136}, {64, 16, 128},  {1, 1440, 2880}};

class Prepare : public ::testing::TestWithParam<PrepareStack> {};

TEST_P(Prepare, EqualsTheCpuByteForByte) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  ThreadPool pool;
  for_all_forms(GetParam(), [&](const PrepareStack& s) {
    compare<PoolMemory>(s, {Place::kDevice, Place::kHost}, engine, &pool);
  });
}
INSTANTIATE_TEST_SUITE_P(Shapes, Prepare, ::testing::ValuesIn(kStacks), [](const auto& stack) {
  return fmt::format("e{}_n{}_k{}", stack.param.experts, stack.param.part_n, stack.param.k);
});

// Enough row blocks that a block of threads takes several chunks of k, and the last one fewer.
TEST(PrepareMany, BlocksThatWalkAlongK) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  ThreadPool pool;
  for (const Numerics numerics : kBoth) {
    const PrepareStack s{33, 1056, 1056, 32, 2, numerics};
    const PreparedBytes expected = prepare_on_cpu(s, &pool);
    for (const W4Source source : {W4Source::kUint4b8, W4Source::kInt8}) {
      const PrepareImage image(s, source);
      PoolMemory memory;
      const PreparedBytes found = prepare_on_gpu(s, image, source, Place::kDevice, memory, engine);
      EXPECT_EQ(found.status, 0u);
      EXPECT_EQ(bit_differences(found.weights, expected.weights, s.map().record_bytes()), "") << s.name();
      EXPECT_EQ(bit_differences(found.channel_scale, expected.channel_scale, s.map().padded_n()), "") << s.name();
      EXPECT_EQ(bit_differences(found.bias, expected.bias, s.map().padded_n()), "") << s.name();
    }
  }
}

TEST(PrepareBounds, NothingBehindATensorIsTouched) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  ThreadPool pool;
  for (const PrepareStack& shape : {PrepareStack{1, 8, 8}, PrepareStack{2, 24, 136}, PrepareStack{1, 72, 544}}) {
    for_all_forms(shape, [&](const PrepareStack& s) {
      compare<GuardedMemory>(s, {Place::kTensors, Place::kHost}, engine, &pool);
    });
    if (HasFatalFailure()) return;
  }
}

struct Damage {
  const char* name;
  W4Source source;
  int64_t expert, part, row, at;  // column of a code, group of a scale
  int value;                      // a byte of a code; a scale's bits where `scale` is set
  bool scale;
};

constexpr Damage kDamages[] = {
    {"first code is 8", W4Source::kInt8, 0, 0, 0, 0, 8, false},
    {"last code is -9", W4Source::kInt8, 2, 1, 23, 199, -9, false},
    {"code -128 in an expert at an odd place", W4Source::kInt8, 1, 0, 11, 101, -128, false},
    {"code 127", W4Source::kInt8, 1, 1, 8, 66, 127, false},
    {"scale +inf", W4Source::kUint4b8, 0, 0, 0, 0, 0x7f80, true},
    {"scale -inf in the last group", W4Source::kInt4, 2, 1, 23, 3, 0xff80, true},
    {"scale NaN", W4Source::kInt8, 1, 0, 7, 1, 0x7fc0, true},
    {"scale -NaN", W4Source::kUint4b8, 1, 1, 16, 2, 0xffff, true},
};

TEST(PrepareStatus, BadScalesAndCodesAreTold) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  for (const Numerics numerics : kBoth) {
    for (const Damage& damage : kDamages) {
      // k 200: rows at multiples of 8 bytes; 208: of 16 for one byte a code, the path of whole pieces.
      for (const int64_t k : {200, 208}) {
        const PrepareStack s{3, 24, k, 64, 2, numerics};
        const PrepareImage image(s, damage.source);
        const auto place = static_cast<size_t>(damage.expert * s.num_parts + damage.part);
        if (damage.scale) {
          const auto scale = static_cast<uint16_t>(damage.value);
          std::memcpy(image.at(image.scales[place] + (damage.row * s.groups() + damage.at) * 2), &scale, 2);
        } else {
          *image.at(image.codes[place] + damage.row * s.k + damage.at) = static_cast<uint8_t>(damage.value);
        }
        for (const Place from : {Place::kDevice, Place::kHost}) {
          PoolMemory memory;
          const PreparedBytes found = prepare_on_gpu(s, image, damage.source, from, memory, engine);
          EXPECT_EQ(found.status, damage.scale ? kernels::kStatusBadScale : kernels::kStatusBadCode)
              << damage.name << ", " << s.name();
        }
      }
    }
  }
}

TEST(PrepareStatus, BothBitsAndEarlierOnesStay) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  const PrepareEngine engine;
  const device::Stream stream = engine.prepare.get();
  const PrepareStack s{1, 64, 128};
  const PrepareImage image(s, W4Source::kInt8);
  *image.at(image.codes[0] + 77) = 9;
  std::memset(image.at(image.scales[0] + 20), 0x7f, 2);  // 0x7f7f is the largest finite scale
  std::memset(image.at(image.scales[0] + 22), 0xff, 2);
  prepare::DeviceW4Expert expert;
  expert.codes[0] = image.at(image.codes[0]);
  expert.scales[0] = image.at(image.scales[0]);
  const auto source = prepare_source(s, W4Source::kInt8, std::span(&expert, 1), true);
  const prepare::DeviceW4Sizes sizes = must(prepare::device_w4_sizes(source));
  PoolMemory memory;
  uint32_t* status = memory.copy_of(std::vector<uint32_t>{kernels::kStatusBadExpertId}, stream);
  auto* weights = memory.take<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), 128, stream);
  auto* staging = memory.take<uint8_t>(static_cast<int64_t>(sizes.staging_bytes), 256, stream);
  must(prepare::prepare_on_device(*must(kernels::device_table()), source, {weights, nullptr, nullptr}, staging,
                                  engine.streams(), status));
  EXPECT_EQ(on_host<uint32_t>(status, 1, stream)[0],
            kernels::kStatusBadExpertId | kernels::kStatusBadScale | kernels::kStatusBadCode);
}

}  // namespace
}  // namespace quadrille::testing
