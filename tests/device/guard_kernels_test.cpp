// SPDX-License-Identifier: Apache-2.0
// Single kernels with every array in front of an unmapped page, plan and tile lists included, for 1 to 130 experts; the
// bits must be those of the same calls in ordinary memory. And the staging ring of a preparation from the host.
#include <gtest/gtest.h>

#include <algorithm>

#include "device/compare_bits.h"
#include "device/device_plan.h"
#include "device/device_stack.h"
#include "device/fill.h"
#include "device/guarded_memory.h"
#include "device/hopper_layer.h"
#include "device/random_data.h"
#include "prepare/device_prepare.h"

namespace quadrille::testing {
namespace {

constexpr int64_t kMostExperts = 130;

struct ChainSpec {
  int64_t experts, tokens, top_k, hidden, width, group;
  kernels::Numerics numerics;
  size_t config;
};

ChainSpec chain_spec(int64_t experts, size_t configs) {
  struct Shape {
    int64_t hidden, width, group;
  };
  constexpr Shape kShapes[] = {{128, 64, 64}, {40, 24, 0}, {96, 160, 32}, {128, 128, 128}, {200, 8, 0}};
  const auto turn = static_cast<uint64_t>(experts);
  const Shape& shape = kShapes[turn % std::size(kShapes)];
  return {experts,
          1 + static_cast<int64_t>(hash(41, turn) % 40),
          std::min<int64_t>(experts, 1 + static_cast<int64_t>(hash(42, turn) % 8)),
          shape.hidden,
          shape.width,
          shape.group,
          static_cast<kernels::Numerics>(turn % 2),
          static_cast<size_t>(turn / 2) % configs};
}

// Router, plan, quantise, both products, combine by single calls. Returns all codes that they leave.
class Chain {
 public:
  Chain(const ChainSpec& spec, Memory* memory, device::Stream stream)
      : spec_(spec), memory_(memory), stream_(stream), table_(*must(kernels::device_table())) {}

  std::vector<uint16_t> run() {
    const auto* x = activations();
    const std::vector<int32_t> ids = route(x);
    const int64_t tile = table_.w4a8_configs()[spec_.config].tokens;
    const DevicePlan plan = make_device_plan(table_, ids, spec_.top_k, spec_.experts, tile, memory_, stream_);
    const DeviceRows first = take_rows(plan.num_rows, spec_.hidden, memory_, stream_);
    table_.quantize_tokens(
        {spec_.tokens, spec_.top_k, spec_.hidden, first.pitch, x, plan.slot_of_route, nullptr, first.act, first.scale},
        stream_);
    const auto* h = multiply(stack(spec_.width, 2, kGate, spec_.hidden), plan, first, spec_.width, true);
    const DeviceRows second = take_rows(plan.num_rows, spec_.width, memory_, stream_);
    table_.quantize_listed({plan.list, spec_.width, second.pitch, h, second.act, second.scale}, stream_);
    const auto* rows = multiply(stack(spec_.hidden, 1, kDown, spec_.width), plan, second, spec_.hidden, false);

    kernels::DeviceCombine combine;
    combine.num_tokens = spec_.tokens;
    combine.top_k = spec_.top_k;
    combine.width = spec_.hidden;
    combine.rows = rows;
    combine.slot = plan.slot_of_route;
    combine.weight = weights_;
    combine.out = memory_->take<uint16_t>(spec_.tokens * spec_.hidden, 16, stream_);
    table_.combine(combine, stream_);
    auto codes = on_host<uint16_t>(combine.out, spec_.tokens * spec_.hidden, stream_);
    for (int32_t id : ids) codes.push_back(static_cast<uint16_t>(id));
    return codes;
  }

 private:
  const uint16_t* activations() {
    auto* x = memory_->take<uint16_t>(spec_.tokens * spec_.hidden, 16, stream_);
    fill_activations(x, memory_->copy_of(keys_in_order(spec_.tokens), stream_), spec_.tokens, spec_.hidden, false, 51,
                     stream_);
    return x;
  }

  std::vector<int32_t> route(const uint16_t* x) {
    kernels::DeviceRouterLogits logits;
    logits.num_tokens = spec_.tokens;
    logits.num_experts = spec_.experts;
    logits.k = spec_.hidden;
    logits.x = x;
    auto* weight = memory_->take<uint16_t>(spec_.experts * spec_.hidden, 16, stream_);
    fill_small_weights(weight, spec_.experts * spec_.hidden, 52, stream_);
    logits.weight = weight;
    logits.logits = memory_->take<float>(spec_.tokens * spec_.experts, 4, stream_);
    table_.router_logits(logits, stream_);
    kernels::DeviceRouteTokens choice;
    choice.num_tokens = spec_.tokens;
    choice.num_experts = spec_.experts;
    choice.top_k = spec_.top_k;
    choice.logits = logits.logits;
    choice.ids = memory_->take<int32_t>(spec_.tokens * spec_.top_k, 4, stream_);
    choice.weights = memory_->take<float>(spec_.tokens * spec_.top_k, 4, stream_);
    weights_ = choice.weights;
    table_.route_tokens(choice, stream_);
    return on_host<int32_t>(choice.ids, spec_.tokens * spec_.top_k, stream_);
  }

  moe::DeviceLinear stack(int64_t part_n, int parts, int matrix, int64_t k) {
    StackSpec stack;
    stack.experts = spec_.experts;
    stack.part_n = part_n;
    stack.num_parts = parts;
    stack.matrix = matrix;
    stack.k = k;
    stack.group = spec_.group;
    stack.numerics = spec_.numerics;
    stack.bias = spec_.experts % 3 == 0;
    stack.seed = 53;
    return make_device_stack(table_, stack, memory_, stream_);
  }

  const uint16_t* multiply(const moe::DeviceLinear& linear, const DevicePlan& plan, const DeviceRows& rows,
                           int64_t width, bool activated) {
    kernels::DeviceW4A8Gemm gemm = gemm_over(linear, plan, rows);
    auto* out = memory_->take<uint16_t>(plan.num_rows * width, 16, stream_);
    if (activated) gemm.output = kernels::GemmOutput::kActivated;
    gemm.out = out;
    gemm.out_pitch = width;
    gemm.config = static_cast<int32_t>(spec_.config);
    table_.w4a8_gemm(gemm, stream_);
    return out;
  }

  ChainSpec spec_;
  Memory* memory_;
  device::Stream stream_;
  const kernels::DeviceTable& table_;
  const float* weights_ = nullptr;
};

class GuardKernels : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
    stream_ = owned_->get();
  }

  void check_chain(const ChainSpec& spec) {
    GuardedMemory guarded;
    PoolMemory plain;
    const auto found = Chain(spec, &guarded, stream_).run();
    ASSERT_EQ(guarded.harmed(stream_), "");
    ASSERT_EQ(bit_differences(found, Chain(spec, &plain, stream_).run(), spec.hidden), "");
    const auto end = found.begin() + spec.tokens * spec.hidden;
    ASSERT_EQ(std::count(found.begin(), end, 0xffff), 0) << "not written";
  }

  void check_masked_plan(int64_t experts) {
    const auto& table = *must(kernels::device_table());
    const int64_t max_m = static_cast<int64_t>(hash(61, static_cast<uint64_t>(experts)) % 50), tile = 16;
    GuardedMemory memory;
    std::vector<int32_t> counts;
    int64_t expected = 0;
    for (int64_t e = 0; e < experts; ++e) {
      counts.push_back(static_cast<int32_t>(hash(62, static_cast<uint64_t>(e)) % static_cast<uint64_t>(max_m + 1)));
      expected += (counts.back() + tile - 1) / tile;
    }
    kernels::PlanMasked plan{experts, max_m, tile};
    plan.masked_m = memory.copy_of(counts, stream_);
    plan.tiles = memory.take<kernels::TokenTile>(experts * ((max_m + tile - 1) / tile), 16, stream_);
    plan.num_tiles = memory.take<int32_t>(1, 4, stream_);
    plan.status = memory.take<uint32_t>(1, 4, stream_, 0);
    table.plan_masked(plan, stream_);
    ASSERT_EQ(on_host<int32_t>(plan.num_tiles, 1, stream_)[0], expected);
    int64_t rows = 0, wanted = 0;
    for (const auto& t : on_host<kernels::TokenTile>(plan.tiles, expected, stream_)) rows += t.num_rows;
    for (int32_t count : counts) wanted += count;
    ASSERT_EQ(rows, wanted);
    ASSERT_EQ(memory.harmed(stream_), "");
  }

  std::optional<device::OwnedStream> owned_;
  device::Stream stream_;
};

TEST_P(GuardKernels, StayInTheirBuffers) {
  const size_t configs = must(kernels::device_table())->w4a8_configs().size();
  check_chain(chain_spec(GetParam(), configs));
  check_masked_plan(GetParam());
}
INSTANTIATE_TEST_SUITE_P(Guard, GuardKernels, ::testing::Range(int64_t{1}, kMostExperts + 1));

// Experts of one matrix in host memory, as the random data has them.
struct HostExperts {
  std::vector<std::vector<uint32_t>> codes;
  std::vector<std::vector<uint16_t>> scales;
  std::vector<prepare::DeviceW4Expert> experts;

  explicit HostExperts(const StackSpec& spec) : codes(static_cast<size_t>(spec.experts)), scales(codes.size()) {
    for (size_t e = 0; e < codes.size(); ++e) {
      const auto seed = [&](Part part) { return matrix_seed(spec.seed, static_cast<int64_t>(e), spec.matrix, part); };
      for (int64_t i = 0; i < spec.part_n * spec.k / 8; ++i) codes[e].push_back(code_word(seed(Part::kCodes), i));
      for (int64_t i = 0; i < spec.part_n * spec.groups(); ++i) scales[e].push_back(scale_bits(seed(Part::kScales), i));
      prepare::DeviceW4Expert expert;
      expert.codes[0] = codes[e].data();
      expert.scales[0] = scales[e].data();
      experts.push_back(expert);
    }
  }
};

class GuardStaging : public GuardKernels {};

TEST_P(GuardStaging, OfAPreparationFromTheHost) {
  const auto& table = *must(kernels::device_table());
  const auto copy = must(device::OwnedStream::create());
  std::vector<device::OwnedEvent> events;
  for (int i = 0; i < 6; ++i) events.push_back(must(device::OwnedEvent::create()));
  const int64_t experts = GetParam();
  StackSpec spec;
  spec.experts = experts;
  spec.part_n = 8 * (experts + 2);
  spec.matrix = kDown;
  spec.k = 96;
  spec.group = 32;
  spec.seed = 54;
  const HostExperts host(spec);
  prepare::DeviceW4Source source;
  source.part_n = spec.part_n;
  source.k = spec.k;
  source.group_size = spec.group;
  source.experts = host.experts;
  source.on_host = true;
  const auto sizes = must(prepare::device_w4_sizes(source));
  GuardedMemory memory;
  prepare::DeviceW4Destination destination;
  destination.weights = memory.take<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), 128, stream_);
  void* staging = memory.take_bytes(sizes.staging_bytes, 256, kPoison, stream_);
  auto* status = memory.take<uint32_t>(1, 4, stream_, 0);
  prepare::PrepareStreams streams{
      stream_,         copy.get(),     {events[0].get(), events[1].get()}, {events[2].get(), events[3].get()},
      events[4].get(), events[5].get()};
  must(prepare::prepare_on_device(table, source, destination, staging, streams, status));
  const auto found = on_host<uint8_t>(destination.weights, static_cast<int64_t>(sizes.weight_bytes), stream_);
  ASSERT_EQ(on_host<uint32_t>(status, 1, stream_)[0], 0u);
  ASSERT_EQ(memory.harmed(stream_), "");
  PoolMemory plain;
  const auto linear = make_device_stack(table, spec, &plain, stream_);
  const auto expected = on_host<uint8_t>(linear.weights, static_cast<int64_t>(sizes.weight_bytes), stream_);
  // Bytes between the end of an expert and its stride are nobody's.
  const int64_t used = layout::W4Hopper64{spec.part_n, spec.k, spec.group, false}.num_bytes();
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t first = e * sizes.expert_stride;
    ASSERT_TRUE(std::equal(found.begin() + first, found.begin() + first + used, expected.begin() + first))
        << "expert " << e << " of " << experts;
  }
}

INSTANTIATE_TEST_SUITE_P(Guard, GuardStaging, ::testing::Values(1, 2, 3, 7, 16));

}  // namespace
}  // namespace quadrille::testing
