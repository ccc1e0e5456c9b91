// SPDX-License-Identifier: Apache-2.0
// Products that make their codes themselves, beside the steps that they save and the same product, bit for bit: bf16
// rows, rows of experts, codes gathered by slots, norms with each update; in chains of launches that overlap.
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

enum class Update { kNone, kBf16, kCombine };

TEST_F(GemmInputTest, RowsOfANorm) {
  const int64_t top_k = 8, slots = 40;
  for (const Matrix& m : std::vector<Matrix>{{5120, 2048, 128}, {640, 4096, 128}, {72, 40, 0}, {200, 1288, 0}}) {
    const moe::DeviceLinear linear = stack(m);
    const auto* weight = rows(1, m.k, 4);
    const auto* expert_rows = rows(slots, m.k, 6);
    std::mt19937 random(8);
    for (const int64_t count : {1, 2, 3, 4}) {
      if (!kernels::fits_gemm_norm(linear.numerics, m.group, count, m.k, top_k)) continue;
      for (const Update update : {Update::kNone, Update::kBf16, Update::kCombine}) {
        SCOPED_TRACE(fmt::format("{} rows, n {} k {}, update {}", count, m.n, m.k, static_cast<int>(update)));
        const uint16_t* const x = rows(count, m.k, 20 + static_cast<uint64_t>(count));
        const auto copy_of_x = [&] { return memory_.copy_of(on_host<uint16_t>(x, count * m.k, stream()), stream()); };
        kernels::DeviceAddNorm norm;
        norm.num_rows = count;
        norm.width = m.k;
        norm.eps = 1e-6f;
        norm.x = copy_of_x();
        norm.weight = weight;
        if (update == Update::kBf16) norm.update = rows(count, m.k, 30);
        if (update == Update::kCombine) {
          std::vector<int32_t> slot;
          std::vector<float> route_weight;
          for (int64_t i = 0; i < count * top_k; ++i) {
            slot.push_back(random() % 7 == 0 ? -1 : static_cast<int32_t>(random() % slots));
            route_weight.push_back(0.001f * static_cast<float>(random() % 1000));
          }
          norm.combine.num_tokens = count;
          norm.combine.top_k = top_k;
          norm.combine.width = m.k;
          norm.combine.rows = expert_rows;
          norm.combine.slot = memory_.copy_of(slot, stream());
          norm.combine.weight = count == 3 ? nullptr : memory_.copy_of(route_weight, stream());
          norm.routes_are_older = true;
        }
        kernels::DeviceAddNorm first = norm;
        first.x = copy_of_x();
        const DeviceRows codes = take_rows(count, m.k, &memory_, stream());
        first.act = codes.act;
        first.act_pitch = codes.pitch;
        first.act_scale = codes.scale;
        table_->add_norm(first, stream());
        DeviceW4A8Gemm apart = moe::gemm_of(linear, moe::single_list(count), 0);
        apart.act_rows = count;
        DeviceW4A8Gemm joined = apart;
        take_codes(codes, &apart);
        joined.norm = &norm;
        if (update != Update::kNone) norm.x_out = memory_.take<uint16_t>(count * m.k, 16, stream());
        expect_equal(apart, joined, count);
        const auto sums = on_host<uint16_t>(first.x, count * m.k, stream());
        const uint16_t* const found = norm.x_out != nullptr ? norm.x_out : norm.x;
        EXPECT_EQ(bit_differences(on_host<uint16_t>(found, count * m.k, stream()), sums, m.k), "") << "sums";
        EXPECT_EQ(bit_differences(on_host<uint16_t>(norm.x, count * m.k, stream()),
                                  on_host<uint16_t>(x, count * m.k, stream()), m.k),
                  "")
            << "the stream itself";
        if (HasFailure()) return;
      }
    }
  }
}

// A residual stream between two rows, every product the update of the next norm, every other one of plain rows.
TEST_F(GemmInputTest, AChainSeesWhatItsLinksWrote) {
  constexpr int kLinks = 16;
  const int64_t width = 2048, count = 2;
  const moe::DeviceLinear linear = stack({width, width, 128});
  const auto configs = small_tiles();
  uint16_t* x[2] = {rows(count, width, 1), memory_.take<uint16_t>(count * width, 16, stream())};
  const auto first_x = on_host<uint16_t>(x[0], count * width, stream());
  const auto* weight = rows(1, width, 2);
  uint16_t* y[2] = {memory_.take<uint16_t>(count * width, 16, stream()),
                    memory_.take<uint16_t>(count * width, 16, stream())};
  const auto link = [&](int i) {
    DeviceW4A8Gemm p = moe::gemm_of(linear, moe::single_list(count), configs[static_cast<size_t>(i) % configs.size()]);
    p.act_rows = count;
    p.output = GemmOutput::kRowsBf16;
    p.out_pitch = width;
    p.x = y[0];
    p.out = y[1];
    table_->w4a8_gemm(p, stream());
    kernels::DeviceAddNorm norm;
    norm.num_rows = count;
    norm.width = width;
    norm.eps = 1e-6f;
    norm.x = x[i % 2];
    norm.x_out = x[1 - i % 2];
    norm.update = y[1];
    norm.weight = weight;
    p.x = nullptr;
    p.norm = &norm;
    p.out = y[0];
    table_->w4a8_gemm(p, stream());
  };
  const auto begin = [&] {
    must(device::copy_to_device(x[0], first_x.data(), first_x.size() * 2, stream()));
    must(device::copy_to_device(y[0], first_x.data(), first_x.size() * 2, stream()));
    must(device::synchronize(stream()));
  };
  begin();
  for (int i = 0; i < kLinks; ++i) {
    link(i);
    must(device::synchronize(stream()));
  }
  const auto expected = on_host<uint16_t>(y[0], count * width, stream());
  const auto expected_x = on_host<uint16_t>(x[0], count * width, stream());
  const auto graph = must(device::Graph::capture(stream(), [&]() -> Status {
    for (int i = 0; i < kLinks; ++i) link(i);
    return {};
  }));
  for (int round = 0; round < 50; ++round) {
    begin();
    must(graph.launch(stream()));
    ASSERT_EQ(bit_differences(on_host<uint16_t>(y[0], count * width, stream()), expected, width), "") << round;
    ASSERT_EQ(bit_differences(on_host<uint16_t>(x[0], count * width, stream()), expected_x, width), "") << round;
  }
}

}  // namespace
}  // namespace quadrille::testing
