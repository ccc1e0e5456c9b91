// SPDX-License-Identifier: Apache-2.0
// Which steps a device decoder enqueues, in which order, over a table that computes nothing: no device is asked, so
// nothing can be read back.
#include "model/device_decoder.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "golden_model.h"
#include "layout/kv_tile.h"
#include "model/tp_legality.h"
#include "unit/moe/device_fixture.h"

namespace quadrille::testing {
namespace {

using ::testing::ElementsAre;
using namespace model;  // NOLINT: the subject

struct DecoderCalls {
  std::vector<kernels::DeviceQkv> heads;
  std::vector<kernels::DeviceAttention> attentions;
  std::vector<kernels::DeviceBf16Gemm> dense;
  std::vector<kernels::DeviceGreedy> greedy;
  std::vector<kernels::DeviceSample> draws;
};
DecoderCalls* calls = nullptr;

kernels::DeviceTable decoder_table() {
  kernels::DeviceTable table = recording_table();
  table.embed = [](const kernels::DeviceEmbed&, device::Stream s) { record("embed", s, {}, {}); };
  table.split_heads = [](const kernels::DeviceQkv& p, device::Stream s) {
    calls->heads.push_back(p);
    record("split_heads", s, {}, {});
  };
  table.attention = [](const kernels::DeviceAttention& p, device::Stream s) {
    calls->attentions.push_back(p);
    if (p.projection.qkv != nullptr) calls->heads.push_back(p.projection);
    record("attention", s, {}, {});
  };
  table.bf16_gemm = [](const kernels::DeviceBf16Gemm& p, device::Stream s) {
    calls->dense.push_back(p);
    record("bf16_gemm", s, {}, {});
  };
  table.greedy = [](const kernels::DeviceGreedy& p, device::Stream s) {
    calls->greedy.push_back(p);
    record("greedy", s, {}, {});
  };
  table.sample = [](const kernels::DeviceSample& p, device::Stream s) {
    calls->draws.push_back(p);
    record("sample", s, {}, {});
  };
  table.choose_bf16_tile = [](int64_t, int64_t) -> int64_t { return 16; };
  return table;
}

class DeviceDecoderTest : public ::testing::Test {
 protected:
  DeviceDecoderTest() : table(decoder_table()) {
    recording = &record_;
    calls = &seen;
  }
  ~DeviceDecoderTest() override {
    recording = nullptr;
    calls = nullptr;
  }

  // `as_bf16`: the shapes of the folder, unquantised. `ranks`: this is rank 1 of so many.
  void open(const std::string& name, bool as_bf16 = false, int ranks = 1) {
    const std::string folder = *model_path(name);
    config = *read_model_config(folder);
    const Inventory inventory = *take_inventory(folder, *formats::read_hf_config(folder), config, no_log());
    DeviceShard shard;
    moe::DeviceRanks others;
    if (ranks > 1) {
      const auto shares = *rank_shares(planned_model(inventory, config), ranks);
      for (const RankShare& share : shares) shard.all.push_back(share.shard);
      shard.rank = 1;
      others.tensor = &rank.emplace(1, ranks);
    }
    ASSERT_TRUE(check_device_shard(shard, config).ok());
    DeviceModelShape shape = *device_shape(inventory, config);
    const auto plain = [&](StackShape* stack) {
      if (as_bf16) stack->is_w4 = false;
    };
    for (DeviceLayerShape& layer : shape.layers) {
      for (StackShape* stack : {&layer.q, &layer.k, &layer.v, &layer.o}) plain(stack);
      for (auto* mlp : {&layer.experts, &layer.shared, &layer.dense}) {
        if (!*mlp) continue;
        plain(&(*mlp)->gate_up);
        plain(&(*mlp)->down);
      }
    }
    shape = rank_shape(std::move(shape), shard);
    config = rank_config(config, shard);
    const WeightPlaces places = place_weights(shape, config, kernels::Numerics::kExact);
    view = view_weights(places, config, far_memory(30), kernels::Numerics::kExact, others);
    ASSERT_TRUE(check_device_model(view, config, 64).ok());
    parts = plan_step_memory(view, config, {64, 8, 8, 1024}, shard, others);
    DeviceDecoderMemory memory;
    memory.workspace = far_memory(20);
    memory.pages = far<uint16_t>(40);
    memory.num_pages = 16;
    moe::DeviceStreams streams;
    streams.main = {far_memory(5)};
    decoder.emplace(config, view, table, kernels::Numerics::kExact, parts, memory, streams, shard, others);
  }

  static StepShape decode_shape(int64_t bucket) { return {bucket, bucket, bucket, bucket, 0, 512, true}; }

  Recording record_;
  DecoderCalls seen;
  kernels::DeviceTable table;
  ModelConfig config;  // of the rank
  std::optional<RecordingRank> rank;
  DeviceWeightsView view;
  StepMemory parts;
  std::optional<DeviceDecoder> decoder;
};

TEST_F(DeviceDecoderTest, ABlockOfAQuantisedModel) {
  open("olmoe_clip/w4a8-g64");
  ASSERT_TRUE(decoder->enqueue_layers(decode_shape(8)).ok());
  const std::vector<std::string> names = record_.names();
  // The attention makes the codes of o's input, a norm those of qkv's; what the experts give is combined where the next
  // norm reads it.
  const std::vector<std::string> block = {"add_norm",        "gemm2",          "attention",       "gemm2",
                                          "add_norm",        "route_and_plan", "quantize_tokens", "gemm1",
                                          "quantize_listed", "gemm2"};
  std::vector<std::string> expected = {"embed"};
  for (int64_t l = 0; l < config.num_layers; ++l) expected.insert(expected.end(), block.begin(), block.end());
  EXPECT_EQ(names, expected);
  for (const RecordedCall& call : record_.calls) EXPECT_EQ(call.stream, far_memory(5)) << call.name;
  // q, k and v are one product into one row, whose columns the attention splits heads from.
  EXPECT_EQ(record_.gemms[0].n, config.q_width() + 2 * config.kv_width());
  EXPECT_EQ(record_.gemms[0].out_pitch, record_.gemms[0].n);
  EXPECT_EQ(seen.heads[0].qkv, record_.gemms[0].out);
  EXPECT_GT(seen.heads[0].clip, 0);
}

// Of few tokens the norm in front of the experts comes with their router, into the other of two residual rows.
TEST_F(DeviceDecoderTest, ABlockOfFewTokens) {
  open("olmoe_clip/w4a8-g64");
  const StepShape shape = decode_shape(4);
  ASSERT_TRUE(decoder->enqueue_layers(shape).ok());
  ASSERT_TRUE(decoder->enqueue_logits(shape, 0, 4).ok());
  const std::vector<std::string> names = record_.names();
  EXPECT_EQ(std::count(names.begin(), names.end(), "norm_and_route"), config.num_layers);
  EXPECT_EQ(std::count(names.begin(), names.end(), "route_and_plan"), 0);
  ASSERT_EQ(record_.normed.size(), static_cast<size_t>(2 * config.num_layers + 1));
  for (size_t i = 1; i < record_.normed.size(); ++i) {
    const kernels::DeviceAddNorm& before = record_.normed[i - 1];
    EXPECT_EQ(record_.normed[i].x, before.x_out != nullptr ? before.x_out : before.x) << i;
    EXPECT_EQ(record_.normed[i].x_out != nullptr, i % 2 == 1) << i;
    EXPECT_NE(record_.normed[i].x_out, record_.normed[i].x) << i;
  }
  for (const kernels::RouteAndPlan& p : record_.routed_at_once) EXPECT_EQ(p.logits.x, decoder->input_rows());
}

// In a tile of 8 tokens no launch makes codes for a product: the products of o and of the experts do.
TEST_F(DeviceDecoderTest, ProductsOfFewTokensMakeTheirCodes) {
  if (!model_path("qwen3_moe/w4a8-g128")) GTEST_SKIP() << "golden data are not here";
  open("qwen3_moe/w4a8-g128");
  record_.choice = {0, 0};
  ASSERT_TRUE(decoder->enqueue_layers(decode_shape(4)).ok());
  const std::vector<std::string> names = record_.names();
  for (const char* saved : {"quantize_tokens", "quantize_listed"}) {
    EXPECT_EQ(std::count(names.begin(), names.end(), saved), 0) << saved;
  }
  EXPECT_EQ(std::count(names.begin(), names.end(), "add_norm"), config.num_layers);
  ASSERT_EQ(record_.gemms.size(), static_cast<size_t>(4 * config.num_layers));
  for (size_t i = 0; i < record_.gemms.size(); i += 4) {
    const auto &o = record_.gemms[i + 1], &up = record_.gemms[i + 2], &down = record_.gemms[i + 3];
    EXPECT_EQ(o.x, seen.attentions[i / 4].out);
    EXPECT_EQ(up.source_divisor, config.router.top_k);
    EXPECT_EQ(up.source_row, record_.plans[i / 4].route_of_slot);
    EXPECT_EQ(down.x, up.out);
    // Rows that are read while the product is made are not those that it gives.
    const Span h = span_of(down.x, down.act_rows * down.k * 2), out = span_of(down.out, down.act_rows * down.n * 2);
    EXPECT_FALSE(h.meets(out));
    for (const auto* made : {&o, &down}) EXPECT_EQ(made->act, nullptr);
  }
}

TEST_F(DeviceDecoderTest, ResidualSumsAreMadeByTheNextNorm) {
  open("qwen2_moe/w4a8-g64");
  const StepShape shape = decode_shape(2);
  ASSERT_TRUE(decoder->enqueue_layers(shape).ok());
  ASSERT_TRUE(decoder->enqueue_logits(shape, 0, 2).ok());
  ASSERT_EQ(record_.normed.size(), static_cast<size_t>(2 * config.num_layers + 1));
  EXPECT_EQ(record_.normed[0].update, nullptr);
  EXPECT_EQ(record_.normed[0].combine.rows, nullptr);
  for (size_t i = 1; i < record_.normed.size(); ++i) {
    const bool of_experts = i % 2 == 0 && view.layers[i / 2 - 1].is_moe();
    EXPECT_EQ(record_.normed[i].combine.rows != nullptr, of_experts) << i;
    EXPECT_EQ(record_.normed[i].update == nullptr, of_experts) << i;
    EXPECT_EQ(record_.normed[i].x, record_.normed[0].x);
    EXPECT_NE(record_.normed[i].weight, nullptr);
  }
  // Logits in fp32, and the choice of every row.
  EXPECT_EQ(seen.dense.back().output, kernels::GemmOutput::kRowsF32);
  EXPECT_EQ(seen.dense.back().n, decoder->logits_pitch());
  ASSERT_EQ(seen.greedy.size(), 1u);
  EXPECT_EQ(seen.greedy[0].num_rows, 2);
  EXPECT_EQ(seen.greedy[0].vocab_size, config.vocab_size);
  EXPECT_EQ(seen.greedy[0].token, decoder->tokens());
}

TEST_F(DeviceDecoderTest, LogitsOfLaterRowsCombineTheirOwn) {
  open("qwen2_moe/w4a8-g64");
  const StepShape shape = decode_shape(8);
  ASSERT_TRUE(decoder->enqueue_layers(shape).ok());
  ASSERT_TRUE(decoder->enqueue_logits(shape, 0, 4).ok());
  ASSERT_TRUE(decoder->enqueue_logits(shape, 4, 4).ok());
  ASSERT_TRUE(view.layers.back().is_moe());
  const kernels::DeviceAddNorm& first = *(record_.normed.end() - 2);
  const kernels::DeviceAddNorm& second = record_.normed.back();
  const int64_t k = config.router.top_k, width = config.hidden_size;
  EXPECT_EQ(second.x, first.x + 4 * width);
  EXPECT_EQ(second.combine.rows, first.combine.rows);
  EXPECT_EQ(second.combine.slot, first.combine.slot + 4 * k);
  EXPECT_EQ(second.combine.weight, first.combine.weight + 4 * k);
  EXPECT_EQ(second.combine.shared, first.combine.shared + 4 * width);
  EXPECT_EQ(second.combine.shared_gate, first.combine.shared_gate + 4);
}

TEST_F(DeviceDecoderTest, LayersHaveTheirOwnPages) {
  open("olmoe_clip/w4a8-g64");
  ASSERT_TRUE(decoder->enqueue_layers(decode_shape(1)).ok());
  const layout::KvTile tile{config.num_kv_heads, config.head_dim};
  for (int64_t l = 0; l < config.num_layers; ++l) {
    EXPECT_EQ(seen.attentions[static_cast<size_t>(l)].pages.data, far<uint16_t>(40) + l * 16 * tile.page_size());
  }
  EXPECT_EQ(seen.attentions[0].singles, nullptr);
  EXPECT_EQ(seen.attentions[0].num_singles, 1);
  EXPECT_EQ(seen.attentions[0].max_context, 512);
  EXPECT_EQ(seen.attentions[0].pages.table_stride, 8);
}

TEST_F(DeviceDecoderTest, AMixedStepNamesItsRows) {
  open("olmoe_clip/w4a8-g64");
  const StepShape shape{40, 3, 3, 2, 3, 512, false};
  ASSERT_TRUE(decoder->enqueue_layers(shape).ok());
  ASSERT_TRUE(decoder->enqueue_logits(shape, 1, 2).ok());
  const StepBlock block = block_of(shape);
  EXPECT_EQ(seen.attentions[0].singles, decoder->block() + block.singles);
  EXPECT_EQ(reinterpret_cast<const int32_t*>(seen.attentions[0].tiles), decoder->block() + block.tiles);
  EXPECT_EQ(record_.normed.back().rows, decoder->block() + block.logit_rows + 1);
  EXPECT_EQ(record_.normed.back().num_rows, 2);
  EXPECT_EQ(seen.greedy.back().token, decoder->tokens() + 1);
}

TEST_F(DeviceDecoderTest, AStepThatDrawsHasARuleARow) {
  open("olmoe_clip/w4a8-g64");
  const StepShape shape{40, 3, 3, 2, 3, 512, false, true};
  ASSERT_TRUE(decoder->enqueue_layers(shape).ok());
  ASSERT_TRUE(decoder->enqueue_logits(shape, 1, 2).ok());
  EXPECT_TRUE(seen.greedy.empty());
  ASSERT_EQ(seen.draws.size(), 1u);
  const kernels::DeviceSample& draw = seen.draws[0];
  EXPECT_EQ(draw.num_rows, 2);
  EXPECT_EQ(draw.vocab_size, config.vocab_size);
  EXPECT_EQ(draw.logits, decoder->logits());
  EXPECT_EQ(draw.pitch, decoder->logits_pitch());
  EXPECT_EQ(reinterpret_cast<const int32_t*>(draw.rules), decoder->block() + block_of(shape).rules + 8);
  EXPECT_EQ(draw.token, decoder->tokens() + 1);
  EXPECT_EQ(draw.status, decoder->status());
}

TEST_F(DeviceDecoderTest, UnquantisedExpertsGoThroughThePlan) {
  open("qwen2_moe/w4a8-g64", true);
  ASSERT_TRUE(decoder->enqueue_layers(decode_shape(8)).ok());
  EXPECT_TRUE(record_.gemms.empty());
  EXPECT_TRUE(record_.quantized.empty());
  ASSERT_FALSE(record_.plans.empty());
  EXPECT_EQ(record_.plans[0].tile_tokens, 16);
  const auto first = std::find_if(seen.dense.begin(), seen.dense.end(),
                                  [](const kernels::DeviceBf16Gemm& p) { return p.list.tiles != nullptr; });
  ASSERT_NE(first, seen.dense.end());
  EXPECT_EQ(first->output, kernels::GemmOutput::kActivated);
  EXPECT_EQ(first->source_row, record_.plans[0].route_of_slot);
  EXPECT_EQ(first->source_divisor, config.router.top_k);
  EXPECT_EQ((first + 1)->x, first->out);
  EXPECT_TRUE(record_.combined.empty());
  const auto norm = std::find_if(record_.normed.begin(), record_.normed.end(),
                                 [](const kernels::DeviceAddNorm& p) { return p.combine.rows != nullptr; });
  ASSERT_NE(norm, record_.normed.end());
  EXPECT_EQ(norm->combine.rows, (first + 1)->out);
  EXPECT_NE(norm->combine.shared, nullptr);
  EXPECT_NE(norm->combine.shared_gate, nullptr);
}

// The embedding, o_proj and the experts are sums over the ranks; rows that are split have one scale.
TEST_F(DeviceDecoderTest, OfTwoRanks) {
  open("qwen2_moe/w4a8-g64", false, 2);
  ASSERT_TRUE(decoder->enqueue_layers(decode_shape(4)).ok());
  const std::vector<std::string> names = record_.names();
  const std::vector<std::string> sum = {"all_reduce_sum", "round_to_bf16"};
  std::vector<std::string> expected = {"embed"};
  expected.insert(expected.end(), sum.begin(), sum.end());
  for (const char* name : {"add_norm", "gemm2", "attention", "row_absmax", "all_reduce_max", "quantize_listed", "gemm2",
                           "all_reduce_sum", "round_to_bf16", "add_norm"}) {
    expected.emplace_back(name);
  }
  ASSERT_GE(names.size(), expected.size());
  EXPECT_EQ(std::vector<std::string>(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(expected.size())),
            expected);
  EXPECT_EQ(std::vector<std::string>(names.end() - 2, names.end()), sum) << "the experts";
  for (const RecordedCall& call : record_.calls) EXPECT_EQ(call.stream, far_memory(5)) << call.name;
  EXPECT_EQ(seen.heads[0].num_heads, config.num_heads);
  EXPECT_EQ(record_.gemms[0].n, config.q_width() + 2 * config.kv_width());
  EXPECT_EQ(record_.gemms[1].output, kernels::GemmOutput::kRowsF32);
  EXPECT_EQ(record_.gemms[1].n, config.hidden_size);
}

TEST_F(DeviceDecoderTest, OfTwoRanksUnquantised) {
  open("qwen2_moe/w4a8-g64", true, 2);
  ASSERT_TRUE(decoder->enqueue_layers(decode_shape(8)).ok());
  EXPECT_TRUE(record_.combined.empty());
  std::vector<const kernels::DeviceBf16Gemm*> partial;
  for (const auto& gemm : seen.dense) {
    if (gemm.output == kernels::GemmOutput::kRowsF32) partial.push_back(&gemm);
  }
  // o_proj, then the experts and the shared one, or a dense layer's second product; rank 0 adds biases.
  ASSERT_EQ(partial.size(), static_cast<size_t>(2 * config.num_layers + config.num_moe_layers()));
  for (const auto* gemm : partial) EXPECT_EQ(gemm->bias, nullptr);
  EXPECT_EQ(partial[0]->k, config.q_width());
  EXPECT_EQ(partial[1]->k, config.expert_width);
  EXPECT_EQ(partial[2]->k, config.shared_width);
}

}  // namespace
}  // namespace quadrille::testing
