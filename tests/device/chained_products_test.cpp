// SPDX-License-Identifier: Apache-2.0
// Products and quantisations that overlap their predecessors (programmatic dependent launch): a chain of linear layers,
// each the input of the next and all in the same workspace, gives from a graph the bits that it gives with a
// synchronisation behind every link.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <optional>

#include "device/compare_bits.h"
#include "device/device_stack.h"
#include "device/fill.h"
#include "device/hopper_layer.h"
#include "device/must.h"
#include "device/random_data.h"
#include "moe/linear.h"

namespace quadrille::testing {
namespace {

struct Chain {
  int64_t width, rows, group;
  kernels::Numerics numerics;
};

class ChainedProducts : public ::testing::TestWithParam<Chain> {
 protected:
  static constexpr int kLinks = 12;

  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
    stream_ = owned_->get();
    table_ = must(kernels::device_table());
    StackSpec spec;
    spec.experts = 1;
    spec.part_n = GetParam().width;
    spec.matrix = kDown;
    spec.k = GetParam().width;
    spec.group = GetParam().group;
    spec.numerics = GetParam().numerics;
    spec.seed = 7;
    linear_ = make_device_stack(*table_, spec, &memory_, stream_);
    const int64_t values = GetParam().rows * GetParam().width;
    for (auto& x : x_) x = memory_.take<uint16_t>(values, 16, stream_);
    size_ = moe::linear_workspace_bytes(linear_, GetParam().rows);
    workspace_ = memory_.take_bytes(size_, 256, kPoison, stream_);
  }

  void fill(uint64_t seed) {
    const int64_t rows = GetParam().rows;
    fill_activations(x_[0], memory_.copy_of(keys_in_order(rows), stream_), rows, GetParam().width, false, seed,
                     stream_);
  }
  void link(int i) {
    must(moe::run_device_linear(*table_, linear_, x_[i], GetParam().rows, x_[i + 1], workspace_, size_, stream_, {}));
  }
  std::vector<uint16_t> last() { return on_host<uint16_t>(x_[kLinks], GetParam().rows * GetParam().width, stream_); }

  std::optional<device::OwnedStream> owned_;
  device::Stream stream_;
  const kernels::DeviceTable* table_ = nullptr;
  PoolMemory memory_;
  moe::DeviceLinear linear_;
  uint16_t* x_[kLinks + 1] = {};
  void* workspace_ = nullptr;
  size_t size_ = 0;
};

TEST_P(ChainedProducts, SeeWhatTheirPredecessorsWrote) {
  const auto graph = must(device::Graph::capture(stream_, [&]() -> Status {
    for (int i = 0; i < kLinks; ++i) link(i);
    return {};
  }));
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    fill(seed);
    for (int i = 0; i < kLinks; ++i) {
      link(i);
      must(device::synchronize(stream_));
    }
    const auto expected = last();
    for (int i = 0; i < 5; ++i) {
      for (int j = 1; j <= kLinks; ++j) {
        must(device::fill(x_[j], 0xff, static_cast<size_t>(GetParam().rows * GetParam().width) * 2, stream_));
      }
      must(graph.launch(stream_));
      ASSERT_EQ(bit_differences(last(), expected, GetParam().width), "") << "seed " << seed;
    }
  }
  EXPECT_EQ(memory_.harmed(stream_), "");
}

INSTANTIATE_TEST_SUITE_P(Widths, ChainedProducts,
                         ::testing::Values(Chain{2048, 1, 128, kernels::Numerics::kExact},
                                           Chain{4096, 7, 128, kernels::Numerics::kExact},
                                           Chain{512, 16, 32, kernels::Numerics::kExact},
                                           Chain{1024, 100, 64, kernels::Numerics::kExact},
                                           Chain{2048, 5, 128, kernels::Numerics::kVllm}),
                         [](const auto& param_info) {
                           const Chain& c = param_info.param;
                           return fmt::format("W{}_M{}_G{}_{}", c.width, c.rows, c.group,
                                              c.numerics == kernels::Numerics::kExact ? "Exact" : "Vllm");
                         });

}  // namespace
}  // namespace quadrille::testing
