// SPDX-License-Identifier: Apache-2.0
// Products that make their codes themselves, beside the steps that they save and the same product, bit for bit: bf16
// rows, rows of experts, codes gathered by slots; in a chain of launches that overlap.
#include <gtest/gtest.h>

#include <random>

#include "device/compare_bits.h"
#include "device/device_plan.h"
#include "device/device_stack.h"
#include "device/fill.h"
#include "device/hopper_layer.h"
#include "device/random_data.h"
#include "device/table_test.h"
#include "moe/device_steps.h"

namespace quadrille::testing {
namespace {

using kernels::DeviceW4A8Gemm;
using kernels::GemmOutput;

struct Matrix {
  int64_t n, k, group, experts = 1;
};

class GemmInputTest : public TableTest {
 protected:
  moe::DeviceLinear stack(const Matrix& m) {
    StackSpec spec;
    spec.experts = m.experts;
    spec.part_n = m.n;
    spec.matrix = kDown;
    spec.k = m.k;
    spec.group = m.group;
    spec.bias = m.n % 16 != 0;
    spec.seed = static_cast<uint64_t>(m.n + m.k);
    return make_device_stack(*table_, spec, &memory_, stream());
  }
  uint16_t* rows(int64_t count, int64_t width, uint64_t seed) {
    auto* x = memory_.take<uint16_t>(count * width, 16, stream());
    fill_activations(x, memory_.copy_of(keys_in_order(count), stream()), count, width, true, seed, stream());
    return x;
  }
  std::vector<int32_t> small_tiles() const {
    std::vector<int32_t> out;
    const auto configs = table_->w4a8_configs();
    for (size_t i = 0; i < configs.size(); ++i) {
      if (configs[i].tokens == 8) out.push_back(static_cast<int32_t>(i));
    }
    return out;
  }
  std::vector<uint32_t> run(DeviceW4A8Gemm p, int64_t num_rows) {
    const int64_t values = num_rows * p.n;
    p.output = GemmOutput::kRowsF32;
    p.out = memory_.take<float>(values, 16, stream());
    p.out_pitch = p.n;
    table_->w4a8_gemm(p, stream());
    return on_host<uint32_t>(p.out, values, stream());
  }
  // `apart` with the plain tile of 8 tokens, `joined` with every tile of 8.
  void expect_equal(const DeviceW4A8Gemm& apart, DeviceW4A8Gemm joined, int64_t num_rows) {
    const auto expected = run(apart, num_rows);
    for (const int32_t config : small_tiles()) {
      joined.config = config;
      EXPECT_EQ(bit_differences(run(joined, num_rows), expected, apart.n), "") << "tile " << config;
    }
    EXPECT_EQ(memory_.harmed(stream()), "");
  }
  PoolMemory memory_;
};

void take_codes(const DeviceRows& rows, DeviceW4A8Gemm* p) {
  p->act = rows.act;
  p->act_pitch = rows.pitch;
  p->act_scale = rows.scale;
}

TEST_F(GemmInputTest, RowsOfAMatrix) {
  for (const Matrix& m : std::vector<Matrix>{{2048, 4096, 128}, {5120, 2048, 0}, {72, 384, 128}, {264, 1016, 0}}) {
    const moe::DeviceLinear linear = stack(m);
    for (const int64_t count : {1, 2, 3, 4}) {
      SCOPED_TRACE(fmt::format("{} rows, n {} k {} group {}", count, m.n, m.k, m.group));
      DeviceW4A8Gemm apart = moe::gemm_of(linear, moe::single_list(count), 0);
      apart.act_rows = count;
      DeviceW4A8Gemm joined = apart;
      joined.x = rows(count, m.k, 5 + static_cast<uint64_t>(count));
      const DeviceRows codes = take_rows(count, m.k, &memory_, stream());
      table_->quantize_tokens({count, 1, m.k, codes.pitch, joined.x, nullptr, nullptr, codes.act, codes.scale},
                              stream());
      take_codes(codes, &apart);
      expect_equal(apart, joined, count);
      if (HasFailure()) return;
    }
  }
}

// Every token's experts differ, as a router's do.
std::vector<int32_t> some_ids(int64_t tokens, int64_t top_k, int64_t experts, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> all;
    for (int64_t e = 0; e < experts; ++e) all.push_back(static_cast<int32_t>(e));
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(top_k));
  }
  return ids;
}

TEST_F(GemmInputTest, RowsAndGatheredCodesOfExperts) {
  for (const Matrix& m : std::vector<Matrix>{{2048, 768, 128, 24}, {200, 2048, 128, 9}, {64, 40, 0, 8}}) {
    const moe::DeviceLinear linear = stack(m);
    for (const int64_t tokens : {1, 2, 4}) {
      const int64_t top_k = 8;
      SCOPED_TRACE(fmt::format("{} tokens, n {} k {} group {}", tokens, m.n, m.k, m.group));
      const DevicePlan plan =
          make_device_plan(*table_, some_ids(tokens, top_k, m.experts, 3), top_k, m.experts, 8, &memory_, stream());
      for (const bool older : {false, true}) {
        DeviceW4A8Gemm apart = moe::gemm_of(linear, plan.list, 0);
        apart.act_rows = plan.num_rows;
        apart.list_is_older = older;
        DeviceW4A8Gemm joined = apart;
        joined.x = rows(plan.num_rows, m.k, 9);
        const DeviceRows codes = take_rows(plan.num_rows, m.k, &memory_, stream());
        kernels::QuantizeListed listed;
        listed.list = plan.list;
        listed.k = m.k;
        listed.act_pitch = codes.pitch;
        listed.x = joined.x;
        listed.act = codes.act;
        listed.act_scale = codes.scale;
        table_->quantize_listed(listed, stream());
        take_codes(codes, &apart);
        expect_equal(apart, joined, plan.num_rows);

        const uint16_t* const x = rows(tokens, m.k, 10);
        const DeviceRows by_slots = take_rows(plan.num_rows, m.k, &memory_, stream());
        const DeviceRows by_tokens = take_rows(tokens, m.k, &memory_, stream());
        table_->quantize_tokens(
            {tokens, top_k, m.k, codes.pitch, x, plan.slot_of_route, nullptr, by_slots.act, by_slots.scale}, stream());
        table_->quantize_tokens({tokens, 1, m.k, codes.pitch, x, nullptr, nullptr, by_tokens.act, by_tokens.scale},
                                stream());
        take_codes(by_slots, &apart);
        DeviceW4A8Gemm gathered = apart;
        take_codes(by_tokens, &gathered);
        gathered.source_row = plan.route_of_slot;
        gathered.source_divisor = top_k;
        expect_equal(apart, gathered, plan.num_rows);
        if (HasFailure()) return;
      }
    }
  }
}

// Every product quantises what the one before it gave.
TEST_F(GemmInputTest, AChainSeesWhatItsLinksWrote) {
  constexpr size_t kLinks = 16;
  const int64_t width = 2048, count = 2, values = count * width;
  const moe::DeviceLinear linear = stack({width, width, 128});
  const auto configs = small_tiles();
  std::vector<uint16_t*> y = {rows(count, width, 1)};
  for (size_t i = 0; i < kLinks; ++i) y.push_back(memory_.take<uint16_t>(values, 16, stream()));
  const auto link = [&](size_t i) {
    DeviceW4A8Gemm p = moe::gemm_of(linear, moe::single_list(count), configs[i % configs.size()]);
    p.act_rows = count;
    p.x = y[i];
    p.out = y[i + 1];
    p.out_pitch = width;
    table_->w4a8_gemm(p, stream());
  };
  for (size_t i = 0; i < kLinks; ++i) {
    link(i);
    must(device::synchronize(stream()));
  }
  const auto expected = on_host<uint16_t>(y[kLinks], values, stream());
  const auto graph = must(device::Graph::capture(stream(), [&]() -> Status {
    for (size_t i = 0; i < kLinks; ++i) link(i);
    return {};
  }));
  for (int round = 0; round < 50; ++round) {
    for (size_t i = 1; i <= kLinks; ++i) must(device::fill(y[i], 0xff, static_cast<size_t>(values) * 2, stream()));
    must(graph.launch(stream()));
    ASSERT_EQ(bit_differences(on_host<uint16_t>(y[kLinks], values, stream()), expected, width), "") << round;
  }
}

}  // namespace
}  // namespace quadrille::testing
