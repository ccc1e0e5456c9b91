// SPDX-License-Identifier: Apache-2.0
// Dense W4A8 linear layers and grouped products at the shapes of the field's own tests, against `hopper` on chosen rows
// with all their columns and, over all rows, tile against tile.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "device/compare_bits.h"
#include "device/device_plan.h"
#include "device/device_stack.h"
#include "device/fill.h"
#include "device/hopper_layer.h"
#include "device/random_data.h"
#include "kernels/api/registry.h"
#include "moe/linear.h"
#include "numerics/bf16.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;

struct ProductSpec {
  const char* list;
  int64_t experts, rows, n, k, group;
  Numerics numerics;
  bool bias = false;

  std::string name() const {
    return fmt::format("{}_E{}_M{}_N{}_K{}_{}_{}{}", list, experts, rows, n, k,
                       group == 0 ? std::string("Channel") : fmt::format("G{}", group),
                       numerics == Numerics::kExact ? "Exact" : "Vllm", bias ? "_Bias" : "");
  }
  StackSpec stack() const {
    StackSpec spec;
    spec.experts = experts;
    spec.part_n = n;
    spec.matrix = kDown;
    spec.k = k;
    spec.group = group;
    spec.numerics = numerics;
    spec.bias = bias;
    spec.seed = 42;
    return spec;
  }
};
void PrintTo(const ProductSpec& spec, std::ostream* out) {
  *out << spec.name();
}

std::vector<ProductSpec> dense_specs() {
  std::vector<ProductSpec> specs;
  const int64_t shapes[][3] = {{1, 128, 128},    {1, 512, 1024},    {1, 4096, 4096},    {1, 8192, 28672},
                               {13, 8192, 4096}, {26, 4096, 8192},  {64, 4096, 4096},   {64, 8192, 28672},
                               {257, 128, 4096}, {257, 4096, 4096}, {1024, 4096, 8192}, {1024, 8192, 4096}};
  for (const auto& s : shapes) {
    for (Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      specs.push_back({"Dense", 1, s[0], s[1], s[2], 128, numerics});
    }
  }
  // Ours: other groups, n and k that fill no record, a bias, no rows.
  int turn = 0;
  for (int64_t group : {32, 64, 0}) {
    for (const int64_t rows : {0, 5, 130}) {
      const auto numerics = static_cast<Numerics>(turn++ % 2);
      specs.push_back({"Dense", 1, rows, 1000, group == 0 ? 1048 : 2880, group, numerics, turn % 3 != 0});
    }
  }
  specs.push_back({"Sanitize", 1, 33, 72, 136, 0, Numerics::kExact, true});
  specs.push_back({"Sanitize", 1, 9, 136, 192, 64, Numerics::kVllm, true});
  return specs;
}

std::vector<ProductSpec> grouped_specs() {
  std::vector<ProductSpec> specs;
  const int64_t shapes[][3] = {{8, 512, 2048}, {8, 2048, 2048}, {64, 512, 1024},  {64, 2048, 2048},
                               {4, 2048, 768}, {8, 768, 2048},  {64, 1536, 2048}, {128, 8192, 4096}};
  for (const auto& s : shapes) {
    for (Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      specs.push_back({"Grouped", s[0], 0, s[1], s[2], 128, numerics});
    }
  }
  specs.push_back({"Sanitize", 5, 0, 72, 96, 32, Numerics::kVllm});
  specs.push_back({"Sanitize", 7, 0, 200, 256, 128, Numerics::kExact});
  return specs;
}

// Experts of the rows: ragged counts with 0, 1 and multiples of 16, in mixed order.
std::vector<int32_t> ragged_ids(int64_t experts) {
  std::vector<int32_t> ids;
  for (int64_t e = 0; e < experts; ++e) {
    const uint64_t h = hash(21, static_cast<uint64_t>(e));
    const uint64_t counts[] = {0, 1, 16 * (1 + h / 8 % 4), h / 8 % 70};
    ids.insert(ids.end(), counts[h % 4], static_cast<int32_t>(e));
  }
  ids.insert(ids.end(), 3, static_cast<int32_t>(experts - 1));
  for (size_t i = ids.size(); i > 1; --i) std::swap(ids[i - 1], ids[hash(22, i) % i]);
  return ids;
}

class ProductConformance : public ::testing::TestWithParam<ProductSpec> {
 protected:
  static constexpr uint64_t kSeed = 4242;

  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
    stream_ = owned_->get();
    table_ = must(kernels::device_table());
    linear_ = make_device_stack(*table_, GetParam().stack(), &memory_, stream_);
  }

  uint16_t* make_x(int64_t rows) {
    auto* x = memory_.take<uint16_t>(rows * GetParam().k, 16, stream_);
    fill_activations(x, memory_.copy_of(keys_in_order(rows), stream_), rows, GetParam().k, false, kSeed, stream_);
    return x;
  }

  // The row of token `key` with the matrix of `expert`, by `hopper`.
  static std::vector<uint16_t> hopper_row(int64_t expert, int64_t key) {
    const ProductSpec& spec = GetParam();
    static ThreadPool pool;
    const CpuStack stack = make_cpu_stack(spec.stack(), {expert}, &pool);
    std::vector<float> x, out(static_cast<size_t>(spec.n));
    for (int64_t i = 0; i < spec.k; ++i) {
      x.push_back(numerics::bf16_to_f32(activation_bits(kSeed, key, i, spec.k, false)));
    }
    Arena scratch;
    moe::Execution execution;
    execution.table = must(kernels::select_table("hopper"));
    execution.kernels = {&pool, &scratch};
    execution.numerics = spec.numerics;
    moe::LinearInput input(x.data(), 1, spec.k);
    moe::apply_linear(stack.linear, &input, execution, out.data());
    std::vector<uint16_t> codes;
    for (float value : out) codes.push_back(numerics::bf16_from_f32(value));
    return codes;
  }

  static std::set<int64_t> chosen_rows(int64_t rows) {
    std::set<int64_t> chosen;
    for (int64_t row : {int64_t{0}, rows / 2, rows - 1,
                        static_cast<int64_t>(hash(23, static_cast<uint64_t>(rows)) %
                                             static_cast<uint64_t>(std::max<int64_t>(rows, 1)))}) {
      if (row >= 0 && row < rows) chosen.insert(row);
    }
    return chosen;
  }

  static void compare_row(const std::vector<uint16_t>& out, int64_t row, int64_t expert, int64_t key) {
    const int64_t n = GetParam().n;
    const std::vector<uint16_t> found(out.begin() + row * n, out.begin() + (row + 1) * n);
    EXPECT_EQ(bit_differences(found, hopper_row(expert, key), n), "") << "row " << row << ", expert " << expert;
  }

  std::optional<device::OwnedStream> owned_;
  device::Stream stream_;
  const kernels::DeviceTable* table_ = nullptr;
  PoolMemory memory_;
  moe::DeviceLinear linear_;
};

class DenseConformance : public ProductConformance {
 protected:
  std::vector<uint16_t> run(const uint16_t* x, int64_t rows, int32_t config) {
    const int64_t n = GetParam().n;
    auto* out = memory_.take<uint16_t>(rows * n, 16, stream_);
    const size_t size = moe::linear_workspace_bytes(linear_, rows);
    void* workspace = memory_.take_bytes(size, 256, kPoison, stream_);
    must(moe::run_device_linear(*table_, linear_, x, rows, out, workspace, size, stream_, {config, config}));
    auto found = on_host<uint16_t>(out, rows * n, stream_);
    EXPECT_EQ(std::count(found.begin(), found.end(), 0xffff), 0) << "not written";
    return found;
  }
};

TEST_P(DenseConformance, EqualsHopper) {
  const ProductSpec& spec = GetParam();
  const uint16_t* x = make_x(spec.rows);
  const auto base = run(x, spec.rows, -1);
  for (int64_t row : chosen_rows(spec.rows)) compare_row(base, row, 0, row);
  for (size_t config = 0; config < table_->w4a8_configs().size(); ++config) {
    EXPECT_EQ(bit_differences(run(x, spec.rows, static_cast<int32_t>(config)), base, spec.n), "")
        << table_->w4a8_configs()[config].name;
  }
  if (spec.rows > 1) {
    const auto alone = run(x + (spec.rows - 1) * spec.k, 1, -1);
    EXPECT_EQ(bit_differences(alone, std::vector<uint16_t>(base.end() - spec.n, base.end()), spec.n), "") << "alone";
  }
  EXPECT_EQ(memory_.harmed(stream_), "");
}

class GroupedConformance : public ProductConformance {
 protected:
  // Rows in slot order.
  std::vector<uint16_t> run(const std::vector<int32_t>& ids, const uint16_t* x, size_t config,
                            std::vector<int32_t>* token_of_slot) {
    const ProductSpec& spec = GetParam();
    const auto rows = static_cast<int64_t>(ids.size());
    const int64_t tile_tokens = table_->w4a8_configs()[config].tokens;
    const DevicePlan plan = make_device_plan(*table_, ids, 1, spec.experts, tile_tokens, &memory_, stream_);
    const DeviceRows act = take_rows(rows, spec.k, &memory_, stream_);
    table_->quantize_tokens({rows, 1, spec.k, act.pitch, x, plan.slot_of_route, nullptr, act.act, act.scale}, stream_);
    kernels::DeviceW4A8Gemm gemm = gemm_over(linear_, plan, act);
    auto* out = memory_.take<uint16_t>(rows * spec.n, 16, stream_);
    gemm.out = out;
    gemm.out_pitch = spec.n;
    gemm.config = static_cast<int32_t>(config);
    table_->w4a8_gemm(gemm, stream_);
    *token_of_slot = on_host<int32_t>(plan.route_of_slot, rows, stream_);
    auto found = on_host<uint16_t>(out, rows * spec.n, stream_);
    EXPECT_EQ(std::count(found.begin(), found.end(), 0xffff), 0) << "not written";
    return found;
  }
};

TEST_P(GroupedConformance, EqualsHopper) {
  const ProductSpec& spec = GetParam();
  const std::vector<int32_t> ids = ragged_ids(spec.experts);
  const auto rows = static_cast<int64_t>(ids.size());
  const uint16_t* x = make_x(rows);
  std::vector<int32_t> token_of_slot;
  const auto base = run(ids, x, 0, &token_of_slot);
  for (int64_t slot : chosen_rows(rows)) {
    const int64_t token = token_of_slot[static_cast<size_t>(slot)];
    compare_row(base, slot, ids[static_cast<size_t>(token)], token);
  }
  for (size_t config = 1; config < table_->w4a8_configs().size(); ++config) {
    EXPECT_EQ(bit_differences(run(ids, x, config, &token_of_slot), base, spec.n), "")
        << table_->w4a8_configs()[config].name;
  }
  EXPECT_EQ(memory_.harmed(stream_), "");
}

std::string product_name(const ::testing::TestParamInfo<ProductSpec>& info) {
  return info.param.name();
}
std::vector<ProductSpec> only(const std::vector<ProductSpec>& specs, bool sanitize) {
  std::vector<ProductSpec> out;
  for (const ProductSpec& spec : specs) {
    if ((std::string(spec.list) == "Sanitize") == sanitize) out.push_back(spec);
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(Field, DenseConformance, ::testing::ValuesIn(only(dense_specs(), false)), product_name);
INSTANTIATE_TEST_SUITE_P(Sanitize, DenseConformance, ::testing::ValuesIn(only(dense_specs(), true)), product_name);
INSTANTIATE_TEST_SUITE_P(Field, GroupedConformance, ::testing::ValuesIn(only(grouped_specs(), false)), product_name);
INSTANTIATE_TEST_SUITE_P(Sanitize, GroupedConformance, ::testing::ValuesIn(only(grouped_specs(), true)), product_name);

}  // namespace
}  // namespace quadrille::testing
