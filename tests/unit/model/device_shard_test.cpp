// SPDX-License-Identifier: Apache-2.0
// What a tensor-parallel rank holds of a model on a GPU: shapes add up to the model's, the 4-bit matrices that it
// gathers are the cuts of the shard plan, and sizes that the attention cannot run are named.
#include "model/device_shard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "golden_model.h"
#include "model/device_cuts.h"
#include "model/device_weights.h"
#include "model/tp_legality.h"
#include "unit/moe/recording_table.h"

namespace quadrille::testing {
namespace {

using namespace model;  // NOLINT: the subject

struct Ranked {
  ModelConfig config;
  Inventory inventory;
  std::vector<DeviceShard> shards;
};

Ranked cut(const std::string& name, int ranks) {
  const std::string folder = *model_path(name);
  ModelConfig config = *read_model_config(folder);
  Inventory inventory = *take_inventory(folder, *formats::read_hf_config(folder), config, no_log());
  DeviceShard shard;
  const auto shares = *rank_shares(planned_model(inventory, config), ranks);
  for (const RankShare& share : shares) shard.all.push_back(share.shard);
  std::vector<DeviceShard> shards(static_cast<size_t>(ranks), shard);
  for (int r = 0; r < ranks; ++r) shards[static_cast<size_t>(r)].rank = r;
  return {std::move(config), std::move(inventory), std::move(shards)};
}

TEST(DeviceShard, ShapesAddUp) {
  for (const char* name : {"qwen2_moe/w4a8-g64", "olmoe_clip/w4a8-g64"}) {
    SCOPED_TRACE(name);
    const Ranked model = cut(name, 2);
    const DeviceModelShape whole = *device_shape(model.inventory, model.config);
    int64_t vocabulary = 0, heads = 0, width = 0, o = 0;
    for (const DeviceShard& shard : model.shards) {
      ASSERT_TRUE(check_device_shard(shard, model.config).ok());
      const ModelConfig own = rank_config(model.config, shard);
      const DeviceModelShape shape = rank_shape(whole, shard);
      EXPECT_EQ(shape.layers[0].q.n, own.q_width());
      EXPECT_EQ(shape.layers[0].k.n, own.kv_width());
      EXPECT_EQ(shape.layers[0].experts->gate_up.n, 2 * own.expert_width);
      EXPECT_EQ(shape.layers[0].experts->down.n, model.config.hidden_size);
      EXPECT_EQ(own.vocab_size, model.config.vocab_size);
      vocabulary += shape.vocabulary;
      heads += own.num_heads;
      width += own.expert_width;
      o += own.q_width();
      const WeightPlaces places = place_weights(shape, own, kernels::Numerics::kExact);
      RecordingRank tensor(shard.rank, 2);
      moe::DeviceRanks ranks;
      ranks.tensor = &tensor;
      const DeviceWeightsView view = view_weights(places, own, nullptr, kernels::Numerics::kExact, ranks);
      const Status legal = check_device_model(view, own, 64);
      EXPECT_TRUE(legal.ok()) << legal.error().message;
    }
    EXPECT_EQ(vocabulary, model.config.vocab_size);
    EXPECT_EQ(heads, model.config.num_heads);
    EXPECT_EQ(width, model.config.expert_width);
    EXPECT_EQ(o, model.config.q_width());
  }
}

TEST(DeviceShard, OneRankIsTheModel) {
  const Ranked model = cut("qwen2_moe/w4a8-g64", 1);
  const DeviceShard alone;
  EXPECT_EQ(rank_config(model.config, alone).num_heads, model.config.num_heads);
  EXPECT_EQ(alone.vocabulary(100).size(), 1u);
  EXPECT_EQ(alone.vocabulary(100)[0], (layout::Range{0, 100}));
  EXPECT_EQ(alone.own(), nullptr);
}

TEST(DeviceShard, HeadsThatDoNotComeOutAreRefused) {
  ModelConfig config;
  config.num_heads = 12;
  config.num_kv_heads = 4;
  config.head_dim = 64;
  DeviceShard shard;
  const auto cut_in_five = *layout::cut_heads(12, 4, 5);
  for (const layout::HeadShard& heads : cut_in_five) {
    layout::ModelShard one;
    one.layers.resize(1);
    one.layers[0].attention.heads = heads;
    shard.all.push_back(one);
  }
  const Status refused = check_device_shard(shard, config);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(refused.error().message.find("1, 2, 4"), std::string::npos) << refused.error().message;
  EXPECT_NE(refused.error().message.find("--device cpu"), std::string::npos);
}

struct Gathered {
  std::vector<std::byte> memory;
  prepare::DeviceW4Expert expert;
};

Gathered gather(const CutModule& module, kernels::Numerics numerics) {
  LoadOptions options;
  options.numerics = numerics;
  WeightReader reader(numerics, false, prepare::ChannelScale::kWholeRow);
  const W4Gatherer gatherer(&reader, options);
  Gathered result;
  result.memory.resize(gatherer.bytes({module}, 1), std::byte{0xee});
  EXPECT_TRUE(gatherer.read({module}, 1, result.memory.data()).ok());
  result.expert = gatherer.places({module}, 1, result.memory.data());
  return result;
}

template <typename T>
std::vector<T> values(const void* data, size_t count) {
  const auto* from = static_cast<const T*>(data);
  return {from, from + count};
}

// Against the whole matrix, gathered likewise and cut by prepare/shard.h.
TEST(DeviceShard, GathersTheCutsOfThePlan) {
  const Ranked model = cut("qwen2_moe/w4a8-g64", 2);
  const MlpSources& expert = model.inventory.layers[0].experts[1];
  for (const auto numerics : {kernels::Numerics::kExact, kernels::Numerics::kVllm}) {
    for (const DeviceShard& shard : model.shards) {
      const RankCuts cuts(shard.own());
      for (const bool is_down : {false, true}) {
        const ModuleSource& source = is_down ? expert.down : expert.gate;
        const CutModule module = is_down ? cuts.down(0, &layout::LayerShard::experts, source)
                                         : cuts.columns(0, &layout::LayerShard::experts, source);
        const Gathered whole = gather(cuts.whole(source), numerics);
        const Gathered own = gather(module, numerics);
        prepare::CanonicalW4 matrix;
        matrix.n = source.n();
        matrix.k = source.k();
        matrix.group_size = source.decision.group_size;
        matrix.packed = whole.expert.codes[0];
        matrix.scales = static_cast<const uint16_t*>(whole.expert.scales[0]);
        const layout::MlpShard& held = shard.own()->layers[0].experts;
        prepare::OwnedW4 kept;
        prepare::CanonicalW4 expected = matrix;
        if (is_down) {
          kept = *prepare::row_parallel_shard(matrix, held.down, prepare::ChannelScale::kWholeRow);
          expected = kept.view();
        } else {
          expected = prepare::column_parallel_shard(matrix, held.columns);
        }
        const size_t words = module.code_bytes() / 4, scales = module.scale_count();
        EXPECT_EQ(values<uint32_t>(own.expert.codes[0], words), values<uint32_t>(expected.packed, words));
        EXPECT_EQ(values<uint16_t>(own.expert.scales[0], scales), values<uint16_t>(expected.scales, scales));
        const bool has_absmax = is_down && numerics == kernels::Numerics::kVllm;
        ASSERT_EQ(own.expert.row_absmax != nullptr, has_absmax);
        if (!has_absmax) continue;
        const auto rows = static_cast<size_t>(source.n());
        EXPECT_EQ(values<float>(own.expert.row_absmax, rows), values<float>(expected.row_absmax, rows));
      }
    }
  }
}

}  // namespace
}  // namespace quadrille::testing
