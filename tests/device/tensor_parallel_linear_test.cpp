// SPDX-License-Identifier: Apache-2.0
// A row-parallel linear layer (o_proj) over ranks that share one GPU against apply_row_parallel with the CPU table
// `hopper`, bit for bit; and the steps that only ranks need, against the shared functions of numerics/.
#include <gtest/gtest.h>

#include <random>

#include "device/compare_bits.h"
#include "device/loopback_ranks.h"
#include "device/random_data.h"
#include "device/split_case.h"
#include "device/table_test.h"
#include "kernels/api/registry.h"
#include "moe/row_parallel.h"
#include "numerics/act_quant.h"
#include "numerics/elementwise.h"
#include "parallel/thread_group.h"
#include "prepare/shard.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using moe::SplitScale;

// Columns of whole heads, cut unevenly.
struct LinearSpec {
  const char* name;
  int ranks;
  int64_t rows, n, heads, head_dim, group;
  Numerics numerics;
  SplitScale scale = SplitScale::kAgreed;
  bool bias = true;

  int64_t k() const { return heads * head_dim; }
};
void PrintTo(const LinearSpec& spec, std::ostream* out) {
  *out << spec.name;
}

class RowParallel : public ::testing::TestWithParam<LinearSpec> {
 protected:
  static constexpr uint64_t kSeed = 99;
  RowParallel() : spec_(GetParam()), matrix_(spec_.n, spec_.k(), spec_.group, spec_.bias, kSeed, 0, kDown) {}

  layout::KShard shard(int rank) const {
    const auto cut = must(layout::cut_in_units(spec_.k(), spec_.head_dim, spec_.ranks, "test heads"));
    return layout::k_shard({spec_.k(), true, spec_.group}, cut[static_cast<size_t>(rank)]);
  }
  prepare::OwnedW4 owned(int rank) const {
    return must(prepare::row_parallel_shard(matrix_.view(), shard(rank), prepare::ChannelScale::kWholeRow));
  }
  // [rows, held] of a rank.
  std::vector<uint16_t> input(int rank) const {
    const layout::KShard cut = shard(rank);
    std::vector<uint16_t> x;
    for (int64_t r = 0; r < spec_.rows; ++r) {
      for (int64_t c = cut.k_begin; c < cut.k_end; ++c) x.push_back(activation_bits(kSeed, r, c, spec_.k(), false));
    }
    return x;
  }
  std::vector<uint16_t> expected() const {
    std::vector<float> out(static_cast<size_t>(spec_.rows * spec_.n));
    must(parallel::run_rank_threads(spec_.ranks, [&](parallel::Communicator& communicator) -> Status {
      ThreadPool pool(4);
      Arena scratch;
      moe::Execution execution;
      QD_TRY(execution.table, kernels::select_table("hopper"));
      execution.kernels = {&pool, &scratch};
      execution.numerics = spec_.numerics;
      execution.ranks = &communicator;
      execution.split_scale = spec_.scale;
      const layout::KShard cut = shard(communicator.rank());
      CpuShard store;
      store.add(must(prepare::prepare_w4(owned(communicator.rank()).view(), spec_.numerics)), matrix_.bias);
      const moe::W4Linear linear = store.finish(spec_.n, cut.k(), spec_.group);
      std::vector<float> x, own(out.size());
      for (const uint16_t bits : input(communicator.rank())) x.push_back(numerics::bf16_to_f32(bits));
      QD_TRY_STATUS(
          moe::apply_row_parallel(linear, {x.data(), spec_.rows, cut.held(), cut.k_offset()}, execution, own.data()));
      if (communicator.rank() == 0) out = own;
      return {};
    }));
    std::vector<uint16_t> codes;
    for (const float value : out) codes.push_back(numerics::bf16_from_f32(value));
    return codes;
  }

  LinearSpec spec_;
  SplitMatrix matrix_;
};

TEST_P(RowParallel, RanksOnOneGpuEqualHopper) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  must(device::use(0));
  const auto& table = *must(kernels::device_table());
  const device::OwnedStream origin = must(device::OwnedStream::create());
  LoopbackRanks ranks(spec_.ranks, static_cast<size_t>(spec_.rows * spec_.n), origin.get());
  PoolMemory memory;
  struct Rank {
    moe::DeviceLinear linear;
    moe::DeviceSplitRows rows;
    moe::DeviceRanks ranks;
    uint16_t* out;
    void* workspace;
    size_t size;
  };
  std::vector<Rank> working;
  for (int r = 0; r < spec_.ranks; ++r) {
    Rank& rank = working.emplace_back();
    const prepare::OwnedW4 part = owned(r);
    rank.linear = prepare_shards(table, {{part.view()}}, {{matrix_.bias}}, spec_.numerics, &memory, origin.get());
    const auto x = input(r);
    auto* to = memory.take<uint16_t>(static_cast<int64_t>(x.size()), 16, origin.get());
    must(device::copy_to_device(to, x.data(), x.size() * 2, origin.get()));
    must(device::synchronize(origin.get()));
    rank.rows = {to, spec_.rows, shard(r).held(), shard(r).k_offset()};
    rank.ranks.tensor = &ranks.communicator(r);
    rank.ranks.split_scale = spec_.scale;
    rank.out = memory.take<uint16_t>(spec_.rows * spec_.n, 16, origin.get());
    rank.size = moe::row_parallel_workspace_bytes(rank.linear, rank.ranks, spec_.rows);
    rank.workspace = memory.take_bytes(rank.size, 256, kPoison, origin.get());
  }
  must(ranks.run(origin.get(), [&](int r) {
    const Rank& rank = working[static_cast<size_t>(r)];
    return moe::run_row_parallel_linear(table, rank.linear, rank.rows, rank.ranks, rank.out, rank.workspace, rank.size,
                                        ranks.stream(r));
  }));
  const std::vector<uint16_t> wanted = expected();
  for (int r = 0; r < spec_.ranks; ++r) {
    const auto found = on_host<uint16_t>(working[static_cast<size_t>(r)].out, spec_.rows * spec_.n, origin.get());
    EXPECT_EQ(bit_differences(found, wanted, spec_.n), "") << "rank " << r;
  }
  EXPECT_EQ(memory.harmed(origin.get()), "");
}

const LinearSpec kLinears[] = {
    {"Even", 2, 5, 264, 4, 64, 128, Numerics::kExact},
    {"UnevenHeads", 4, 9, 136, 6, 64, 128, Numerics::kExact},
    {"ThreeOfGroup32", 3, 40, 256, 5, 96, 32, Numerics::kExact},
    {"Channel", 3, 3, 128, 7, 40, 0, Numerics::kExact},
    {"Vllm", 4, 5, 128, 6, 64, 128, Numerics::kVllm},
    {"VllmChannelLocal", 2, 5, 128, 3, 72, 0, Numerics::kVllm, SplitScale::kLocal},
    {"WithoutBias", 2, 130, 128, 2, 128, 64, Numerics::kExact, SplitScale::kAgreed, false},
    {"NoRows", 2, 0, 128, 2, 128, 64, Numerics::kExact},
};
INSTANTIATE_TEST_SUITE_P(Linears, RowParallel, ::testing::ValuesIn(kLinears),
                         [](const auto& spec) { return std::string(spec.param.name); });

// --- The steps by themselves -----------------------------------------------------------------------------------------

class SplitSteps : public testing::TableTest {
 protected:
  // bf16 codes of all kinds, NaN and infinities among them; a row of NaN, a row of zeros.
  static std::vector<uint16_t> codes(int64_t rows, int64_t k) {
    std::vector<uint16_t> x;
    for (int64_t i = 0; i < rows * k; ++i) {
      const uint64_t h = hash(31, static_cast<uint64_t>(i));
      const int64_t row = i / k;
      const bool any = row % 3 == 0 && h % 64 == 0;
      x.push_back(row == 1   ? 0x7fc1
                  : row == 2 ? 0x8000
                  : any      ? static_cast<uint16_t>(h >> 16)
                             : numerics::bf16_from_f32(normal_number(32, static_cast<uint64_t>(i))));
    }
    return x;
  }
  const uint16_t* upload(PoolMemory* memory, const std::vector<uint16_t>& values) const {
    auto* to = memory->take<uint16_t>(static_cast<int64_t>(values.size()), 16, stream());
    if (!values.empty()) must(device::copy_to_device(to, values.data(), values.size() * 2, stream()));
    must(device::synchronize(stream()));
    return to;
  }
};

TEST_F(SplitSteps, RowAbsmaxOfRowsThatAreThere) {
  for (const int64_t k : {8, 64, 200, 768, 2880, 14336}) {
    for (const auto& [rows, there] : {std::pair<int64_t, int64_t>{7, 7}, {9, 4}, {5, 0}, {1, 1}}) {
      const auto x = codes(there, k);
      std::vector<uint32_t> expected(static_cast<size_t>(rows), 0);
      for (int64_t r = 0; r < there; ++r) {
        float most = 0.0f;
        for (int64_t i = 0; i < k; ++i) {
          most = numerics::absmax_step(most, numerics::bf16_to_f32(x[static_cast<size_t>(r * k + i)]));
        }
        expected[static_cast<size_t>(r)] = numerics::bits_of(most);
      }
      PoolMemory memory;
      kernels::RowAbsmax p;
      p.num_rows = rows;
      p.k = k;
      p.rows_there =
          rows == there ? nullptr : memory.copy_of(std::vector<int32_t>{static_cast<int32_t>(there)}, stream());
      p.x = upload(&memory, x);
      p.absmax = memory.take<float>(rows, 4, stream());
      table_->row_absmax(p, stream());
      EXPECT_EQ(bit_differences(on_host<uint32_t>(p.absmax, rows, stream()), expected, 1), "") << k << " of " << there;
      EXPECT_EQ(memory.harmed(stream()), "");
    }
  }
}

TEST_F(SplitSteps, QuantisedWithTheAbsmaxOfTheWholeRowAtItsPlace) {
  for (const auto& [k, offset] : {std::pair<int64_t, int64_t>{8, 0}, {64, 64}, {192, 64}, {200, 8}, {2880, 120}}) {
    for (const bool given : {true, false}) {
      const int64_t rows = 13, pitch = (k + offset + 127) / 128 * 128;
      const auto x = codes(rows, k);
      std::vector<uint8_t> expected(static_cast<size_t>(rows * pitch), 0);
      std::vector<uint32_t> scales;
      std::vector<float> absmax;
      for (int64_t r = 0; r < rows; ++r) {
        float most = 0.0f;
        const auto value = [&](int64_t i) { return numerics::bf16_to_f32(x[static_cast<size_t>(r * k + i)]); };
        for (int64_t i = 0; i < k; ++i) most = numerics::absmax_step(most, value(i));
        // Elsewhere in the whole row: as large, larger by a bf16 number, infinite.
        if (given && r % 4 == 1) most = most * 3 + 1.5f;
        if (given && r % 4 == 3) most = numerics::float_of(0x7f800000);
        absmax.push_back(most);
        const float scale = numerics::act_scale_of_absmax(most);
        scales.push_back(numerics::bits_of(scale));
        for (int64_t i = 0; i < k; ++i) {
          expected[static_cast<size_t>(r * pitch + offset + i)] = numerics::act_code(value(i), scale);
        }
      }
      PoolMemory memory;
      kernels::QuantizeListed p;
      p.list.num_rows = rows;
      p.k = k;
      p.offset = offset;
      p.act_pitch = pitch;
      p.x = upload(&memory, x);
      p.absmax = given ? memory.copy_of(absmax, stream()) : nullptr;
      p.act = memory.take<uint8_t>(rows * pitch, 16, stream());
      p.act_scale = memory.take<float>(rows, 4, stream());
      table_->quantize_listed(p, stream());
      EXPECT_EQ(bit_differences(on_host<uint8_t>(p.act, rows * pitch, stream()), expected, pitch), "") << k;
      EXPECT_EQ(bit_differences(on_host<uint32_t>(p.act_scale, rows, stream()), scales, 1), "") << k;
      EXPECT_EQ(memory.harmed(stream()), "");
    }
  }
}

// fp32 numbers of all kinds.
std::vector<float> floats(int64_t count, uint64_t seed) {
  std::vector<float> out;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t h = hash(seed, static_cast<uint64_t>(i));
    out.push_back(h % 97 == 0 ? numerics::float_of(static_cast<uint32_t>(h >> 32))
                              : normal_number(seed, static_cast<uint64_t>(i)));
  }
  return out;
}

TEST_F(SplitSteps, PartialRowsAreOneChainInSlotOrderAndNotRounded) {
  for (const auto& [tokens, top_k, width] :
       {std::array<int64_t, 3>{1, 1, 8}, {5, 8, 136}, {30, 9, 2880}, {3, 2, 7168}}) {
    for (const bool shared : {false, true}) {
      const auto rows = floats(tokens * top_k * width, 41), others = floats(tokens * width, 42);
      const auto weight = floats(tokens * top_k, 43), gate = floats(tokens, 44);
      std::vector<int32_t> slot;
      for (int64_t i = 0; i < tokens * top_k; ++i) {
        slot.push_back(hash(45, static_cast<uint64_t>(i)) % 5 == 0 ? -1 : static_cast<int32_t>(tokens * top_k - 1 - i));
      }
      std::vector<uint32_t> expected, expected_rounded;
      for (int64_t i = 0; i < tokens * width; ++i) {
        const int64_t t = i / width;
        float acc = 0.0f;
        for (int64_t j = t * top_k; j < (t + 1) * top_k; ++j) {
          if (slot[j] >= 0) acc = numerics::combine_step(weight[j], rows[slot[j] * width + i % width], acc);
        }
        if (shared) acc = numerics::combine_step(gate[t], others[i], acc);
        expected.push_back(numerics::bits_of(numerics::canonical(acc)));
        expected_rounded.push_back(numerics::bf16_from_f32(acc));
      }
      PoolMemory memory;
      const auto on_16 = [&](const std::vector<float>& values) {
        auto* to = memory.take<float>(static_cast<int64_t>(values.size()), 16, stream());
        must(device::copy_to_device(to, values.data(), values.size() * 4, stream()));
        must(device::synchronize(stream()));
        return to;
      };
      kernels::DeviceCombinePartial p;
      p.num_tokens = tokens;
      p.top_k = top_k;
      p.width = width;
      p.rows = on_16(rows);
      p.slot = memory.copy_of(slot, stream());
      p.weight = memory.copy_of(weight, stream());
      if (shared) p.shared = on_16(others), p.shared_gate = memory.copy_of(gate, stream());
      p.out = memory.take<float>(tokens * width, 16, stream());
      table_->combine_partial(p, stream());
      EXPECT_EQ(bit_differences(on_host<uint32_t>(p.out, tokens * width, stream()), expected, width), "") << width;
      auto* rounded = memory.take<uint16_t>(tokens * width, 16, stream());
      table_->round_to_bf16({tokens * width, p.out, rounded}, stream());
      std::vector<uint32_t> found;
      for (const uint16_t code : on_host<uint16_t>(rounded, tokens * width, stream())) found.push_back(code);
      EXPECT_EQ(bit_differences(found, expected_rounded, width), "") << width;
      EXPECT_EQ(memory.harmed(stream()), "");
    }
  }
}

TEST_F(SplitSteps, RoundingOfAnyCountAndPlace) {
  const auto values = floats(70'003, 51);
  for (const int64_t count : {0, 1, 3, 5, 1024, 70'000}) {
    for (const int64_t shift : {0, 1, 3}) {
      PoolMemory memory;
      auto* x = memory.take<float>(count + shift, 16, stream());
      const auto bytes = static_cast<size_t>(count) * 4;
      if (count > 0) must(device::copy_to_device(x + shift, values.data(), bytes, stream()));
      auto* out = memory.take<uint16_t>(count, 16, stream());
      table_->round_to_bf16({count, x + shift, out}, stream());
      std::vector<uint16_t> expected;
      for (int64_t i = 0; i < count; ++i) expected.push_back(numerics::bf16_from_f32(values[static_cast<size_t>(i)]));
      EXPECT_EQ(bit_differences(on_host<uint16_t>(out, count, stream()), expected, 1), "") << count << " at " << shift;
      EXPECT_EQ(memory.harmed(stream()), "");
    }
  }
}

}  // namespace
}  // namespace quadrille::testing
