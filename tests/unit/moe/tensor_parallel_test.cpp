// SPDX-License-Identifier: Apache-2.0
// The layer over tensor-parallel ranks, which are threads here: from an equal input, codes and scales of the split row
// are those of one rank to the bit; the output is the ranks' partial rows combined, added in rank order and rounded
// once; and it is the same on every rank and in every run.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "kernels/api/registry.h"
#include "numerics/act_quant.h"
#include "numerics/bf16.h"
#include "numerics/elementwise.h"
#include "numerics/silu.h"
#include "parallel/communicator.h"
#include "parallel/thread_group.h"
#include "unit/moe/cut_experts.h"

namespace quadrille::moe {
namespace {

using kernels::Numerics;
using kernels::Rounding;

constexpr int64_t kTokens = 9, kTopK = 2;

class Recorder final : public LayerObserver {
 public:
  void stage(const Stage& stage) override {
    size_t bytes = stage.type == StageType::kE4M3 ? 1 : stage.type == StageType::kI64 ? 8 : 4;
    for (const int64_t extent : stage.shape) bytes *= static_cast<size_t>(extent);
    std::vector<std::byte>& copy = stages[stage.name];
    copy.resize(bytes);
    if (bytes > 0) std::memcpy(copy.data(), stage.data, bytes);
  }
  template <typename T>
  std::vector<T> get(const std::string& name) const {
    const auto found = stages.find(name);
    if (found == stages.end()) return {};
    std::vector<T> values(found->second.size() / sizeof(T));
    std::memcpy(values.data(), found->second.data(), found->second.size());
    return values;
  }
  std::map<std::string, std::vector<std::byte>> stages;
};

struct Form {
  int64_t group;
  Numerics numerics;
  bool quantised;
};

struct Batch {
  std::vector<float> x, weights;
  std::vector<int32_t> ids;
};

// What one rank saw: the layer, and its shared expert alone as the one expert of a layer.
struct RankRun {
  Recorder layer, shared;
  std::vector<float> out;
};

class Layer {
 public:
  static constexpr int64_t kNumExperts = 5, kWidth = 128, kSharedWidth = 256;

  explicit Layer(const Form& form)
      : form_(form),
        experts_(kNumExperts, kWidth, form.group, form.numerics, form.quantised, 1),
        shared_(1, kSharedWidth, form.group, form.numerics, form.quantised, 2) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kHidden; ++i) gate_.push_back(numerics::bf16_from_f32(normal(random) / 8));
    for (int64_t i = 0; i < kTokens * kHidden; ++i) batch.x.push_back(numerics::round_to_bf16(normal(random)));
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto first = static_cast<int32_t>(random() % kNumExperts);
      batch.ids.push_back(first);
      batch.ids.push_back(t == 4 ? -1 : static_cast<int32_t>((first + 1 + random() % 3) % kNumExperts));
      for (int64_t j = 0; j < kTopK; ++j) batch.weights.push_back(std::abs(normal(random)) / 2);
    }
  }

  std::vector<Range> cut(int64_t width, int ranks) const {
    return value_of(layout::cut_in_units(width, layout::kColumnUnit, ranks, "width"));
  }

  // Runs the layer on `ranks` threads; one rank runs without a communicator.
  std::vector<RankRun> run(const char* table, int ranks, SplitScale scale = SplitScale::kAgreed) const {
    std::vector<RankRun> runs(static_cast<size_t>(ranks));
    if (ranks == 1) {
      QD_CHECK(run_rank(table, nullptr, 0, 1, scale, &runs[0]).ok(), "one rank runs");
      return runs;
    }
    const Status done = parallel::run_rank_threads(ranks, [&](parallel::Communicator& communicator) {
      return run_rank(table, &communicator, communicator.rank(), ranks, scale,
                      &runs[static_cast<size_t>(communicator.rank())]);
    });
    QD_CHECK(done.ok(), done.ok() ? "" : done.error().message);
    return runs;
  }

  // The gate of the shared expert for each token, as one rank computes it.
  std::vector<float> shared_gate(const char* table) const {
    ThreadPool pool(1);
    Arena scratch;
    std::vector<float> gate(kTokens);
    (*kernels::select_table(table))
        ->router_logits({kTokens, 1, kHidden, batch.x.data(), gate_.data(), gate.data()}, {&pool, &scratch});
    for (float& g : gate) g = numerics::sigmoid(g);
    return gate;
  }

  KShard expert_shard(int rank, int ranks) const {
    return experts_.shard(cut(kWidth, ranks)[static_cast<size_t>(rank)]);
  }

  Batch batch;

 private:
  Status run_rank(const char* table, parallel::Communicator* communicator, int rank, int ranks, SplitScale scale,
                  RankRun* run) const {
    ThreadPool pool(1);
    Arena scratch;
    Execution execution{*kernels::select_table(table), {&pool, &scratch}, form_.numerics, Rounding::kBf16};
    execution.ranks = communicator;
    execution.split_scale = scale;
    auto experts = experts_.prepared(cut(kWidth, ranks)[static_cast<size_t>(rank)]);
    auto shared = shared_.prepared(cut(kSharedWidth, ranks)[static_cast<size_t>(rank)]);
    MoeLayer layer;
    layer.rule.num_experts = kNumExperts;
    layer.rule.top_k = kTopK;
    layer.experts = experts.view();
    layer.shared = shared.view();
    layer.shared_gate_weight = gate_.data();
    QD_TRY_STATUS(check_layer(layer));
    run->out.resize(kTokens * kHidden);
    QD_TRY_STATUS(run_layer(layer, batch.x.data(), kTokens, {batch.ids.data(), batch.weights.data()}, execution,
                            run->out.data(), &run->layer));
    MoeLayer alone;
    alone.rule.num_experts = 1;
    alone.rule.top_k = 1;
    alone.experts = *layer.shared;
    const std::vector<int32_t> ids(kTokens, 0);
    const std::vector<float> ones(kTokens, 1.0f);
    std::vector<float> out(kTokens * kHidden);
    return run_layer(alone, batch.x.data(), kTokens, {ids.data(), ones.data()}, execution, out.data(), &run->shared);
  }

  Form form_;
  Experts experts_, shared_;
  std::vector<uint16_t> gate_;
};

// Section 6 by hand: each rank's combine chain over its partial rows, the sum in rank order, one rounding.
std::vector<float> expected_output(const std::vector<RankRun>& runs, const std::vector<float>& gate,
                                   const Batch& batch) {
  std::vector<float> total(kTokens * kHidden);
  for (size_t r = 0; r < runs.size(); ++r) {
    const auto rows = runs[r].layer.get<float>("gemm2_out");
    const auto shared = runs[r].shared.get<float>("gemm2_out");
    const auto slots = runs[r].layer.get<int32_t>("inv_permuted_idx");
    for (int64_t i = 0; i < kTokens * kHidden; ++i) {
      const int64_t t = i / kHidden;
      float acc = 0.0f;
      for (int64_t j = t * kTopK; j < (t + 1) * kTopK; ++j) {
        if (slots[j] >= 0) acc = std::fmaf(batch.weights[j], rows[slots[j] * kHidden + i % kHidden], acc);
      }
      acc = std::fmaf(gate[t], shared[i], acc);
      total[i] = r == 0 ? acc : total[i] + acc;
    }
  }
  for (float& y : total) y = numerics::round_to_bf16(y);
  return total;
}

const std::vector<Form>& forms() {
  static const std::vector<Form> all = {{32, Numerics::kExact, true},  {64, Numerics::kExact, true},
                                        {128, Numerics::kExact, true}, {0, Numerics::kExact, true},
                                        {128, Numerics::kVllm, true},  {32, Numerics::kVllm, true},
                                        {0, Numerics::kExact, false}};
  return all;
}
constexpr const char* kTables[] = {"ref", "hopper", "generic", "avx2", "avx512", "amx"};

TEST(TensorParallel, CodesAndScalesOfTheSplitRowAreThoseOfOneRank) {
  for (const Form& form : forms()) {
    if (!form.quantised) continue;
    const Layer layer(form);
    for (const char* table : kTables) {
      if (!kernels::select_table(table)) continue;
      const Recorder one = layer.run(table, 1)[0].layer;
      const auto codes = one.get<uint8_t>("a2");
      const auto scales = one.get<float>("a2_scale");
      ASSERT_EQ(codes.size(), scales.size() * Layer::kWidth);
      for (const int ranks : {2, 3, 4}) {
        const auto runs = layer.run(table, ranks);
        for (int r = 0; r < ranks; ++r) {
          const KShard shard = layer.expert_shard(r, ranks);
          ASSERT_EQ(runs[r].layer.get<float>("a2_scale"), scales) << table << " rank " << r << " of " << ranks;
          const auto part = runs[r].layer.get<uint8_t>("a2");
          ASSERT_EQ(part.size(), scales.size() * static_cast<size_t>(shard.k()));
          for (size_t i = 0; i < part.size(); ++i) {
            const int64_t column = shard.pad_begin + static_cast<int64_t>(i) % shard.k();
            const size_t row = i / static_cast<size_t>(shard.k());
            const uint8_t expected = shard.holds(column) ? codes[row * Layer::kWidth + column] : 0;
            ASSERT_EQ(part[i], expected) << table << " rank " << r << " of " << ranks << " row " << row << " column "
                                         << column << " group " << form.group;
          }
        }
      }
    }
  }
}

TEST(TensorParallel, TheOutputIsTheSumInRankOrderRoundedOnce) {
  for (const Form& form : forms()) {
    const Layer layer(form);
    for (const char* table : kTables) {
      if (!kernels::select_table(table)) continue;
      for (const int ranks : {2, 3, 4}) {
        const auto runs = layer.run(table, ranks);
        const auto expected = expected_output(runs, layer.shared_gate(table), layer.batch);
        for (const RankRun& run : runs) {
          ASSERT_EQ(run.out, expected) << table << " " << ranks << " ranks, group " << form.group;
        }
        ASSERT_EQ(layer.run(table, ranks)[0].out, expected) << "again";
      }
    }
  }
}

// Not the bits of one rank, but near: the bias came once, no column is missing or doubled.
TEST(TensorParallel, TheOutputIsNearThatOfOneRank) {
  for (const Form& form : forms()) {
    const Layer layer(form);
    const auto one = layer.run("generic", 1)[0].out;
    double rms = 0;
    for (const float y : one) rms += static_cast<double>(y) * y / static_cast<double>(one.size());
    rms = std::sqrt(rms);
    for (const int ranks : {2, 3, 4}) {
      const auto out = layer.run("generic", ranks)[0].out;
      // One rank rounds each GEMM2 row to bf16 (2^-9 relative), at most three of them a token; the end is rounded too.
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_NEAR(out[i], one[i], 8 * 0x1p-8 * rms) << ranks << " ranks, group " << form.group << " at " << i;
      }
    }
  }
}

TEST(TensorParallel, LocalScalesAreThoseOfEachRanksColumns) {
  const Layer layer({128, Numerics::kExact, true});
  const auto agreed = layer.run("generic", 2), local = layer.run("generic", 2, SplitScale::kLocal);
  int differing = 0;
  for (int r = 0; r < 2; ++r) {
    const auto h = local[r].layer.get<float>("act");
    const auto scales = local[r].layer.get<float>("a2_scale");
    const auto whole = agreed[r].layer.get<float>("a2_scale");
    const size_t width = h.size() / scales.size();
    for (size_t row = 0; row < scales.size(); ++row) {
      float absmax = 0.0f;
      for (size_t i = 0; i < width; ++i) absmax = numerics::absmax_step(absmax, h[row * width + i]);
      ASSERT_EQ(scales[row], numerics::act_scale_of_absmax(absmax));
      differing += scales[row] != whole[row] ? 1 : 0;
    }
  }
  EXPECT_GT(differing, 0);
}

TEST(TensorParallel, ARanksColumnsLieInsideItsMatrix) {
  const Layer layer({128, Numerics::kExact, true});
  GatedMlp mlp;
  mlp.hidden = kHidden;
  mlp.width = 64;
  mlp.gate_up = W4Linear{1, 128, kHidden, 64, nullptr, nullptr};
  mlp.down = W4Linear{1, kHidden, 128, 128, nullptr, nullptr};
  EXPECT_FALSE(check_mlp(mlp)) << "down has K 128, and nothing says that this is a shard";
  mlp.down_k = 128;
  mlp.down_offset = 64;
  EXPECT_TRUE(check_mlp(mlp));
  mlp.down_offset = 72;
  ASSERT_FALSE(check_mlp(mlp));
  EXPECT_NE(check_mlp(mlp).error().message.find("64 columns from 72 on do not fit into a row of 128"),
            std::string::npos)
      << check_mlp(mlp).error().message;
}

}  // namespace
}  // namespace quadrille::moe
