// SPDX-License-Identifier: Apache-2.0
// Random models of ranks: what the ranks hold, put together, is the random model of one rank to the bit.
#include <gtest/gtest.h>

#include <cstring>

#include "layout/w4_lanes16.h"
#include "model/load_weights.h"
#include "prepare/shard.h"
#include "support/golden.h"

namespace quadrille::testing {
namespace {

using layout::KShard;
using layout::Range;
using model::LinearStore;
using model::ModelWeights;
using prepare::CanonicalCopy;
using prepare::CanonicalDense;
using prepare::CanonicalW4;

CanonicalW4 canonical(const CanonicalCopy& copy, Range rows) {
  CanonicalW4 matrix;
  matrix.n = rows.size();
  matrix.k = copy.k;
  matrix.group_size = copy.group_size;
  matrix.packed = copy.packed.data() + rows.begin * copy.k / 8;
  matrix.scales = copy.scales.data() + rows.begin * layout::num_groups(copy.k, copy.group_size);
  return matrix;
}

CanonicalDense canonical(const std::vector<uint16_t>& values, int64_t k, Range rows) {
  return {rows.size(), k, prepare::DenseType::kBf16, values.data() + rows.begin * k};
}

// Each rank's copy of the same matrix, and what it should be a part of.
struct Shards {
  const LinearStore* whole = nullptr;
  std::vector<const LinearStore*> ranks;

  void expect_rows(const std::vector<std::vector<Range>>& held) const {  // of each rank, below each other
    ASSERT_EQ(whole->num_matrices(), ranks[0]->num_matrices());
    for (size_t e = 0; e < static_cast<size_t>(whole->num_matrices()); ++e) {
      whole->is_w4 ? rows_of_w4(held, e) : rows_of_dense(held, e);
    }
  }

  void expect_columns(const std::vector<KShard>& held) const {
    ASSERT_EQ(whole->num_matrices(), ranks[0]->num_matrices());
    for (size_t e = 0; e < static_cast<size_t>(whole->num_matrices()); ++e) {
      whole->is_w4 ? columns_of_w4(held, e) : columns_of_dense(held, e);
    }
  }

 private:
  void rows_of_w4(const std::vector<std::vector<Range>>& cuts, size_t e) const {
    std::vector<CanonicalCopy> copies;
    for (const LinearStore* rank : ranks) copies.push_back(unprepare(rank->w4[e]));
    std::vector<prepare::ColumnPart<CanonicalW4>> parts;
    for (size_t r = 0; r < ranks.size(); ++r) {
      int64_t at = 0;
      for (const Range& rows : cuts[r]) {
        parts.push_back({canonical(copies[r], {at, at + rows.size()}), rows});
        at += rows.size();
      }
      EXPECT_EQ(at, copies[r].n);
    }
    expect_w4(prepare::gather_column_parallel(parts, whole->n), e);
  }

  void columns_of_w4(const std::vector<KShard>& held, size_t e) const {
    std::vector<CanonicalCopy> copies;
    for (const LinearStore* rank : ranks) copies.push_back(unprepare(rank->w4[e]));
    std::vector<prepare::RowPart<CanonicalW4>> parts;
    for (size_t r = 0; r < ranks.size(); ++r) parts.push_back({canonical(copies[r], {0, copies[r].n}), held[r]});
    expect_w4(prepare::gather_row_parallel(parts), e);
  }

  void expect_w4(const Result<prepare::OwnedW4>& gathered, size_t e) const {
    ASSERT_TRUE(gathered) << gathered.error().message;
    const CanonicalCopy expected = unprepare(whole->w4[e]);
    EXPECT_EQ(gathered->packed, expected.packed) << "matrix " << e;
    EXPECT_EQ(gathered->scales, expected.scales) << "matrix " << e;
  }

  void rows_of_dense(const std::vector<std::vector<Range>>& cuts, size_t e) const {
    std::vector<std::vector<uint16_t>> copies;
    for (const LinearStore* rank : ranks) copies.push_back(unprepare(rank->bf16[e]));
    std::vector<prepare::ColumnPart<CanonicalDense>> parts;
    for (size_t r = 0; r < ranks.size(); ++r) {
      ASSERT_EQ(cuts[r].size(), 1u);
      parts.push_back({canonical(copies[r], whole->k, {0, ranks[r]->n}), cuts[r][0]});
    }
    expect_dense(prepare::gather_column_parallel(parts, whole->n), e);
  }

  void columns_of_dense(const std::vector<KShard>& held, size_t e) const {
    std::vector<std::vector<uint16_t>> copies;
    for (const LinearStore* rank : ranks) copies.push_back(unprepare(rank->bf16[e]));
    std::vector<prepare::RowPart<CanonicalDense>> parts;
    for (size_t r = 0; r < ranks.size(); ++r) {
      parts.push_back({canonical(copies[r], ranks[r]->k, {0, ranks[r]->n}), held[r]});
    }
    expect_dense(prepare::gather_row_parallel(parts), e);
  }

  void expect_dense(const Result<prepare::OwnedDense>& gathered, size_t e) const {
    ASSERT_TRUE(gathered) << gathered.error().message;
    const std::vector<uint16_t> expected = unprepare(whole->bf16[e]);
    ASSERT_EQ(gathered->data.size(), expected.size() * sizeof(uint16_t));
    EXPECT_EQ(std::memcmp(gathered->data.data(), expected.data(), gathered->data.size()), 0) << "matrix " << e;
  }
};

class RandomWeights : public ::testing::TestWithParam<int> {
 protected:
  void make(bool quantise_attention, int64_t group_size) {
    auto read = model::read_model_config(data_path("models/qwen2_moe/w4a8-g64"));
    ASSERT_TRUE(read) << read.error().message;
    config = *read;
    random.quantise_attention = quantise_attention;
    random.group_size = group_size;
    options.pool = &pool;
    auto planned = layout::plan_shards(random_shape(config, random), GetParam());
    ASSERT_TRUE(planned) << planned.error().message;
    shards = *planned;
    auto one = random_weights(config, random, options, nullptr);
    ASSERT_TRUE(one) << one.error().message;
    whole = std::move(*one);
    for (const layout::ModelShard& shard : shards) {
      auto part = random_weights(config, random, options, &shard);
      ASSERT_TRUE(part) << part.error().message;
      ranks.push_back(std::move(*part));
    }
  }

  template <typename Get>
  Shards all(const Get& get) const {
    Shards found{&get(whole), {}};
    for (const ModelWeights& rank : ranks) found.ranks.push_back(&get(rank));
    return found;
  }

  template <typename Get>
  std::vector<std::invoke_result_t<Get, const layout::ModelShard&>> of_shards(const Get& get) const {
    std::vector<std::invoke_result_t<Get, const layout::ModelShard&>> found;
    for (const layout::ModelShard& shard : shards) found.push_back(get(shard));
    return found;
  }

  void expect_mlp(size_t layer, model::MlpStore model::LayerStore::*store, layout::MlpShard layout::LayerShard::*cut) {
    const int64_t width = (whole.layers[layer].*store).width;
    if (width == 0) return;
    const auto rows = of_shards([&](const layout::ModelShard& shard) {
      const Range held = (shard.layers[layer].*cut).columns;
      return std::vector<Range>{held, {width + held.begin, width + held.end}};
    });
    const auto columns = of_shards([&](const layout::ModelShard& shard) { return (shard.layers[layer].*cut).down; });
    all([&](const ModelWeights& w) -> auto& { return (w.layers[layer].*store).gate_up; }).expect_rows(rows);
    all([&](const ModelWeights& w) -> auto& { return (w.layers[layer].*store).down; }).expect_columns(columns);
  }

  void expect_attention(size_t layer) {
    using model::LayerStore;
    for (LinearStore LayerStore::*store : {&LayerStore::q, &LayerStore::k, &LayerStore::v}) {
      const auto rows = of_shards([&](const layout::ModelShard& shard) {
        const layout::AttentionShard& held = shard.layers[layer].attention;
        return std::vector<Range>{store == &LayerStore::q ? held.q_rows : held.kv_rows};
      });
      all([&](const ModelWeights& w) -> auto& { return w.layers[layer].*store; }).expect_rows(rows);
    }
    const auto columns = of_shards([&](const layout::ModelShard& shard) { return shard.layers[layer].attention.o; });
    all([&](const ModelWeights& w) -> auto& { return w.layers[layer].o; }).expect_columns(columns);
  }

  void expect_whole() {
    const auto rows = of_shards([](const layout::ModelShard& shard) { return std::vector<Range>{shard.vocabulary}; });
    all([](const ModelWeights& w) -> auto& { return w.lm_head; }).expect_rows(rows);
    std::vector<uint16_t> embedding;
    for (const ModelWeights& rank : ranks) {
      embedding.insert(embedding.end(), rank.embedding.begin(), rank.embedding.end());
    }
    EXPECT_EQ(embedding, whole.embedding);
    for (size_t l = 0; l < whole.layers.size(); ++l) {
      SCOPED_TRACE(l);
      expect_attention(l);
      expect_mlp(l, &model::LayerStore::experts, &layout::LayerShard::experts);
      expect_mlp(l, &model::LayerStore::shared, &layout::LayerShard::shared);
      expect_mlp(l, &model::LayerStore::dense, &layout::LayerShard::dense);
      for (const ModelWeights& rank : ranks) {
        EXPECT_EQ(rank.layers[l].router, whole.layers[l].router);
        EXPECT_EQ(rank.layers[l].shared_gate, whole.layers[l].shared_gate);
      }
    }
  }

  model::ModelConfig config;
  model::RandomModel random;
  ThreadPool pool{1};
  model::LoadOptions options;
  std::vector<layout::ModelShard> shards;
  ModelWeights whole;
  std::vector<ModelWeights> ranks;
};

TEST_P(RandomWeights, OfRanksAreTheShardsOfThoseOfOneRank) {
  ASSERT_NO_FATAL_FAILURE(make(true, 64));
  expect_whole();
}

TEST_P(RandomWeights, WithDenseAttentionToo) {
  ASSERT_NO_FATAL_FAILURE(make(false, 32));
  expect_whole();
}

INSTANTIATE_TEST_SUITE_P(Sizes, RandomWeights, ::testing::Values(2, 3, 4));

}  // namespace
}  // namespace quadrille::testing
