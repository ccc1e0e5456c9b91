// SPDX-License-Identifier: Apache-2.0
// What a product costs that makes its codes itself, beside the step that it saves and the product: launch behind launch
// in a graph, weights from memory, shapes of a decode step of Qwen3-30B-A3B.
#include <gtest/gtest.h>

#include <cstdio>
#include <functional>
#include <random>

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

class GemmInputSpeed : public TableTest {
 protected:
  static constexpr int kLaunches = 48;

  moe::DeviceLinear stack(int64_t n, int64_t k, int64_t experts) {
    StackSpec spec;
    spec.experts = experts;
    spec.part_n = n;
    spec.matrix = kDown;
    spec.k = k;
    return make_device_stack(*table_, spec, &memory_, stream());
  }
  uint16_t* rows(int64_t count, int64_t width) {
    auto* x = memory_.take<uint16_t>(count * width, 16, stream());
    fill_activations(x, memory_.copy_of(keys_in_order(count), stream()), count, width, false, 1, stream());
    return x;
  }
  // Microseconds of a call of `step`, which is told its number.
  double time(const std::function<void(int)>& step) {
    const auto graph = must(device::Graph::capture(stream(), [&]() -> Status {
      for (int i = 0; i < kLaunches; ++i) step(i);
      return {};
    }));
    const auto begin = must(device::OwnedEvent::create(true)), end = must(device::OwnedEvent::create(true));
    float best = 1e9f;
    for (int i = 0; i < 6; ++i) {
      must(device::record(begin.get(), stream()));
      must(graph.launch(stream()));
      must(device::record(end.get(), stream()));
      must(device::synchronize(end.get()));
      best = std::min(best, must(device::elapsed_ms(begin.get(), end.get())));
    }
    return best * 1e3 / kLaunches;
  }
  // The i-th matrix of a stack alone.
  static DeviceW4A8Gemm one_of(const moe::DeviceLinear& linear, int i, int64_t count, int32_t config) {
    DeviceW4A8Gemm p = moe::gemm_of(linear, moe::single_list(count), config);
    p.num_experts = 1;
    p.weights += i % linear.num_experts * linear.expert_stride;
    p.act_rows = count;
    return p;
  }
  PoolMemory memory_;
};

void take_codes(const DeviceRows& rows, DeviceW4A8Gemm* p) {
  p->act = rows.act;
  p->act_pitch = rows.pitch;
  p->act_scale = rows.scale;
}

TEST_F(GemmInputSpeed, RowsOfO) {
  const int64_t n = 2048, k = 4096;
  const moe::DeviceLinear linear = stack(n, k, 24);
  for (const int64_t count : {1, 2, 4}) {
    const uint16_t* const x = rows(count, k);
    const DeviceRows codes = take_rows(count, k, &memory_, stream());
    auto* out = memory_.take<uint16_t>(count * n, 16, stream());
    const auto step = [&](int i, int32_t config, bool product_makes, bool quantises) {
      if (quantises) {
        table_->quantize_tokens({count, 1, k, codes.pitch, x, nullptr, nullptr, codes.act, codes.scale}, stream());
      }
      DeviceW4A8Gemm p = one_of(linear, i, count, config);
      if (product_makes) {
        p.x = x;
      } else {
        take_codes(codes, &p);
      }
      p.out = out;
      p.out_pitch = n;
      table_->w4a8_gemm(p, stream());
    };
    std::printf("o, %d rows: product alone %.2f us, behind its codes %.2f", static_cast<int>(count),
                time([&](int i) { step(i, 7, false, false); }), time([&](int i) { step(i, 7, false, true); }));
    for (const int32_t config : {5, 6, 7}) {
      std::printf(", makes them (tile %d) %.2f", config, time([&](int i) { step(i, config, true, false); }));
    }
    std::printf("\n");
  }
}

TEST_F(GemmInputSpeed, ExpertsOfALayer) {
  constexpr int kPlans = 12;
  const int64_t hidden = 2048, width = 768, top_k = 8, experts = 128;
  const moe::DeviceLinear up = stack(2 * width, hidden, experts), down = stack(hidden, width, experts);
  for (const int64_t count : {1, 2, 4}) {
    std::vector<DevicePlan> plans;
    std::mt19937 random(static_cast<uint32_t>(count));
    for (int i = 0; i < kPlans; ++i) {
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < count; ++t) {
        const auto first = static_cast<int32_t>(random() % static_cast<uint32_t>(experts));
        for (int32_t j = 0; j < top_k; ++j) ids.push_back((first + 13 * j) % static_cast<int32_t>(experts));
      }
      plans.push_back(make_device_plan(*table_, ids, top_k, experts, 8, &memory_, stream()));
    }
    const int64_t slots = count * top_k;
    const uint16_t* const x = rows(count, hidden);
    uint16_t* const h = rows(slots, width);
    const DeviceRows tokens = take_rows(count, hidden, &memory_, stream());
    const DeviceRows by_slots = take_rows(slots, hidden, &memory_, stream());
    const DeviceRows codes = take_rows(slots, width, &memory_, stream());
    auto* out = memory_.take<uint16_t>(slots * hidden, 16, stream());
    table_->quantize_tokens({count, 1, hidden, tokens.pitch, x, nullptr, nullptr, tokens.act, tokens.scale}, stream());
    const auto first = [&](int i, int32_t config, bool gathers) {
      const DevicePlan& plan = plans[static_cast<size_t>(i % kPlans)];
      if (!gathers) {
        table_->quantize_tokens(
            {count, top_k, hidden, tokens.pitch, x, plan.slot_of_route, nullptr, by_slots.act, by_slots.scale},
            stream());
      }
      DeviceW4A8Gemm p = moe::gemm_of(up, plan.list, config);
      p.act_rows = slots;
      p.list_is_older = !gathers;
      take_codes(gathers ? tokens : by_slots, &p);
      if (gathers) {
        p.source_row = plan.route_of_slot;
        p.source_divisor = top_k;
      }
      p.output = kernels::GemmOutput::kActivated;
      p.out = h;
      p.out_pitch = width;
      table_->w4a8_gemm(p, stream());
    };
    const auto second = [&](int i, int32_t config, bool quantises) {
      const DevicePlan& plan = plans[static_cast<size_t>(i % kPlans)];
      DeviceW4A8Gemm p = moe::gemm_of(down, plan.list, config);
      if (quantises) {
        p.x = h;
      } else {
        kernels::QuantizeListed listed;
        listed.list = plan.list;
        listed.k = width;
        listed.act_pitch = codes.pitch;
        listed.x = h;
        listed.act = codes.act;
        listed.act_scale = codes.scale;
        listed.list_is_older = true;
        table_->quantize_listed(listed, stream());
        take_codes(codes, &p);
      }
      p.act_rows = slots;
      p.list_is_older = true;
      p.out = out;
      p.out_pitch = hidden;
      table_->w4a8_gemm(p, stream());
    };
    const auto both = [&](int32_t up_config, bool gathers, int32_t down_config, bool quantises) {
      return time([&](int i) {
        first(i, up_config, gathers);
        second(i, down_config, quantises);
      });
    };
    std::printf(
        "experts, %d tokens: four launches %.2f us (tile 5: %.2f), GEMM2 quantises %.2f (tile 6: %.2f), GEMM1 gathers "
        "%.2f (tile 6: %.2f), both %.2f\n",
        static_cast<int>(count), both(0, false, 0, false), both(5, false, 5, false), both(0, false, 5, true),
        both(0, false, 6, true), both(5, true, 0, false), both(6, true, 0, false), both(5, true, 5, true));
  }
}

}  // namespace
}  // namespace quadrille::testing
