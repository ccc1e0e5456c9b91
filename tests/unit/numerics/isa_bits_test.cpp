// SPDX-License-Identifier: Apache-2.0
// The shared functions give the same bits whatever instruction set their unit is compiled for.
#include "isa_bits.h"

#include <gtest/gtest.h>

#include <bit>
#include <random>
#include <vector>

namespace quadrille::isa_bits {
namespace {

using Run = void (*)(const float*, int, uint32_t*);

std::vector<uint32_t> bits_made_by(Run run, const std::vector<float>& inputs) {
  std::vector<uint32_t> out(inputs.size() * kResults, 0);
  run(inputs.data(), static_cast<int>(inputs.size()), out.data());
  return out;
}

// Ordinary values, every magnitude, and rows with NaN, infinity and zeros among them.
std::vector<float> make_inputs() {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> inputs;
  for (int i = 0; i < 20000; ++i) inputs.push_back(normal(random));
  for (int i = 0; i < 20000; ++i) inputs.push_back(std::bit_cast<float>(static_cast<uint32_t>(random())));
  const uint32_t special[] = {0u, 0x80000000u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc00001u, 1u, 0x7f7fffffu};
  for (int i = 0; i < 4000; ++i) {
    inputs.push_back(random() % 50 == 0 ? std::bit_cast<float>(special[random() % 8]) : normal(random));
  }
  return inputs;
}

void compare(Run run) {
  const auto inputs = make_inputs();
  const auto expected = bits_made_by(run_plain, inputs);
  const auto found = bits_made_by(run, inputs);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(found[i], expected[i]) << "function " << i % kResults << " of input " << inputs[i / kResults];
  }
}

TEST(IsaBits, Avx2EqualsPlain) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) GTEST_SKIP() << "this CPU has no AVX2 and FMA";
  compare(run_avx2);
}

TEST(IsaBits, Avx512EqualsPlain) {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    GTEST_SKIP() << "this CPU has no AVX-512 F, BW, VL and DQ";
  }
  compare(run_avx512);
}

}  // namespace
}  // namespace quadrille::isa_bits
