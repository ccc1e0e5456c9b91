// SPDX-License-Identifier: Apache-2.0
// Attention that takes the projection of its tokens itself: the rows, the codes and every byte of the pages are those
// of split_heads and attention one after the other, for any number of tokens, on page borders, for two tokens of a
// sequence in one step, and with what the kernel cannot do by itself.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <optional>
#include <random>

#include "device/attention_case.h"
#include "device/compare_bits.h"

namespace quadrille {
namespace {

using kernels::HeadNorm;
using testing::AttentionCase;
using testing::AttentionLaunch;
using testing::AttentionShape;
using testing::bit_differences;
using testing::must;
using testing::on_host;
using testing::PoolMemory;
using testing::QueryToken;

class AttentionProjectionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
    owned_.emplace(must(device::OwnedStream::create()));
  }
  device::Stream stream() const { return owned_->get(); }
  std::optional<device::OwnedStream> owned_;
};

// A step of tokens that begins where each sequence ends; two of one sequence stand side by side.
struct ProjectedStep {
  ProjectedStep(const AttentionShape& shape, const std::vector<QueryToken>& tokens, HeadNorm norm, bool rotates,
                bool has_codes, device::Stream on)
      : stream(on), attention(shape, contexts_of(tokens), on) {
    attention.prepare(tokens, AttentionLaunch{0, true, false, has_codes}, &prepared);
    kernels::DeviceAttention& p = prepared.p;
    const int64_t count = static_cast<int64_t>(tokens.size()), dim = shape.head_dim;
    const int64_t pitch = (shape.num_heads + 2 * shape.kv_heads()) * dim + 8;
    std::mt19937 random(11);
    kernels::DeviceQkv& qkv = projection;
    qkv.num_tokens = count;
    qkv.num_heads = shape.num_heads;
    qkv.pages = p.pages;
    qkv.qkv = prepared.memory.copy_of(numbers(count * pitch, random), stream);
    qkv.qkv_pitch = pitch;
    qkv.norm = norm;
    qkv.eps = 1e-6f;
    if (norm != HeadNorm::kNone) {
      const bool whole = norm == HeadNorm::kWholeProjection;
      qkv.q_norm = prepared.memory.copy_of(numbers(whole ? shape.row() : dim, random), stream);
      qkv.k_norm = prepared.memory.copy_of(numbers(whole ? shape.kv_heads() * dim : dim, random), stream);
    }
    std::vector<float> cos, sin;
    for (int64_t i = 0; i < p.max_context * dim / 2; ++i) {
      cos.push_back(std::cos(static_cast<float>(i) * 0.37f));
      sin.push_back(std::sin(static_cast<float>(i) * 0.37f));
    }
    qkv.rotary_dim = rotates ? dim : 0;
    qkv.cos = prepared.memory.copy_of(cos, stream);
    qkv.sin = prepared.memory.copy_of(sin, stream);
    qkv.position = p.position;
    qkv.sequence = p.sequence;
    qkv.q = prepared.memory.take<uint16_t>(count * shape.row(), 16, stream);
    p.q = qkv.q;
    remember_pages(shape, tokens);
  }

  // What is there before the step: the tokens' own positions are NaN.
  void remember_pages(const AttentionShape& shape, const std::vector<QueryToken>& tokens) {
    const layout::KvTile map{shape.kv_heads(), shape.head_dim};
    const kernels::DevicePages& in = prepared.p.pages;
    int64_t num_pages = 1;
    for (const int64_t context : contexts_of(tokens)) num_pages += (context + 63) / 64;
    const auto sequences = static_cast<int64_t>(contexts_of(tokens).size());
    const auto table = on_host<int32_t>(in.table, sequences * in.table_stride, stream);
    pages = on_host<uint16_t>(in.data, num_pages * map.page_size(), stream);
    for (const QueryToken& token : tokens) {
      if (token.position < 0) continue;
      uint16_t* page = &pages[table[token.sequence * in.table_stride + token.position / 64] * map.page_size()];
      for (int64_t kv = 0; kv < map.kv_heads; ++kv) {
        for (int64_t d = 0; d < map.padded_dim(); ++d) {
          page[map.key_offset(kv, token.position % 64, d)] = 0xffff;
          page[map.value_offset(kv, token.position % 64, d)] = 0xffff;
        }
      }
    }
  }

  struct Outcome {
    std::vector<uint16_t> rows, pages;
  };
  Outcome run(bool at_once, int launches = 1) {
    const kernels::DeviceTable& table = *must(kernels::device_table());
    must(device::copy_to_device(prepared.p.pages.data, pages.data(), pages.size() * 2, stream));
    prepared.p.projection = at_once ? projection : kernels::DeviceQkv{};
    for (int i = 0; i < launches; ++i) {
      if (!at_once) table.split_heads(projection, stream);
      attention.launch(prepared);
    }
    Outcome outcome{attention.result(prepared), {}};
    outcome.pages = on_host<uint16_t>(prepared.p.pages.data, static_cast<int64_t>(pages.size()), stream);
    return outcome;
  }

  static std::vector<int64_t> contexts_of(const std::vector<QueryToken>& tokens) {
    std::vector<int64_t> contexts;
    for (const QueryToken& token : tokens) {
      contexts.resize(std::max(contexts.size(), static_cast<size_t>(token.sequence) + 1), 1);
      int64_t& context = contexts[static_cast<size_t>(token.sequence)];
      context = std::max<int64_t>(context, token.position + 1);
    }
    return contexts;
  }
  static std::vector<uint16_t> numbers(int64_t count, std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<uint16_t> x;
    for (int64_t i = 0; i < count; ++i) x.push_back(numerics::bf16_from_f32(normal(random)));
    return x;
  }

  device::Stream stream;
  AttentionCase attention;
  AttentionCase::Prepared prepared;
  kernels::DeviceQkv projection;
  std::vector<uint16_t> pages;
};

struct ProjectionCase {
  AttentionShape shape;
  HeadNorm norm = HeadNorm::kPerHead;
  bool rotates = true;
};
const ProjectionCase kCases[] = {
    {{32, 8, 0, 128, 0}},                            // Qwen3-30B
    {{8, 4, 0, 32, 0}},                              // abacus
    {{32, 4, 0, 128, 0}, HeadNorm::kNone},           // Mixtral
    {{4, 2, 0, 64, 70}},                             // windows
    {{8, 8, 0, 128, 1}},                             //
    {{6, 3, 1, 64, 129}, HeadNorm::kNone},           // a shard that begins inside of a KV head's query heads
    {{3, 1, 0, 32, 0}, HeadNorm::kPerHead, false},   // no rotary embedding
    {{16, 16, 0, 128, 0}},                           // what is split in front: more heads than a cluster takes,
    {{4, 2, 0, 96, 0}},                              // a head of another size,
    {{4, 2, 0, 64, 0}, HeadNorm::kWholeProjection},  // a norm over all heads
};

TEST_F(AttentionProjectionTest, IsSplitHeadsAndAttention) {
  // Sequences end on and beside page borders; some steps have two tokens of one, some padding.
  const std::vector<QueryToken> all = {{0, 1023}, {1, 0},    {2, 63},  {2, 64}, {3, -1},   {4, 127},
                                       {4, 128},  {5, 2111}, {6, 700}, {7, 64}, {8, 129},  {9, 191},
                                       {10, 30},  {11, 5},   {12, 64}, {13, 1}, {14, 400}, {15, 320}};
  for (const ProjectionCase& c : kCases) {
    SCOPED_TRACE(fmt::format("{} heads, {} a KV head, {} dimensions, window {}, norm {}", c.shape.num_heads,
                             c.shape.heads_per_kv, c.shape.head_dim, c.shape.window, static_cast<int>(c.norm)));
    for (const size_t count : {1, 2, 3, 4, 5, 8, 9, 18}) {
      const std::vector<QueryToken> tokens(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count));
      ProjectedStep step(c.shape, tokens, c.norm, c.rotates, count % 2 == 0, stream());
      const auto apart = step.run(false), at_once = step.run(true);
      ASSERT_EQ(bit_differences(at_once.rows, apart.rows, c.shape.row()), "") << count << " tokens, rows";
      ASSERT_EQ(bit_differences(at_once.pages, apart.pages, c.shape.head_dim), "") << count << " tokens, pages";
      ASSERT_EQ(bit_differences(step.run(true, 20).rows, apart.rows, c.shape.row()), "") << count << " tokens, again";
    }
  }
}

// Of one token: contexts from one block to more than a fold takes at once.
TEST_F(AttentionProjectionTest, EveryContext) {
  const AttentionShape shape{32, 8, 0, 128, 0};
  for (const int32_t position : {0, 1, 62, 63, 64, 65, 511, 512, 1024, 1088, 2047, 2048, 3000, 4095, 4096, 6000}) {
    ProjectedStep step(shape, {{0, position}}, HeadNorm::kPerHead, true, true, stream());
    const auto apart = step.run(false), at_once = step.run(true);
    ASSERT_EQ(bit_differences(at_once.rows, apart.rows, shape.row()), "") << position;
    ASSERT_EQ(bit_differences(at_once.pages, apart.pages, shape.head_dim), "") << position;
  }
}

// Qwen3-30B-A3B, 1,088 positions: many launches behind each other in a graph.
TEST_F(AttentionProjectionTest, Speed) {
  constexpr int kLaunches = 50;
  const AttentionShape shape{32, 8, 0, 128, 0};
  const kernels::DeviceTable& table = *must(kernels::device_table());
  for (const size_t count : {1, 2, 4, 8, 16, 64}) {
    std::vector<QueryToken> tokens;
    for (size_t t = 0; t < count; ++t) tokens.push_back({static_cast<int32_t>(t), 1087});
    ProjectedStep step(shape, tokens, HeadNorm::kPerHead, true, false, stream());
    const auto time = [&](bool at_once) {
      step.prepared.p.projection = at_once ? step.projection : kernels::DeviceQkv{};
      const auto graph = must(device::Graph::capture(stream(), [&]() -> Status {
        for (int i = 0; i < kLaunches; ++i) {
          if (!at_once) table.split_heads(step.projection, stream());
          step.attention.launch(step.prepared);
        }
        return {};
      }));
      const auto begin = must(device::OwnedEvent::create(true)), end = must(device::OwnedEvent::create(true));
      float best = 1e9f;
      for (int i = 0; i < 5; ++i) {
        must(device::record(begin.get(), stream()));
        must(graph.launch(stream()));
        must(device::record(end.get(), stream()));
        must(device::synchronize(end.get()));
        best = std::min(best, must(device::elapsed_ms(begin.get(), end.get())) / kLaunches);
      }
      return best * 1e3f;
    };
    const float apart = time(false), at_once = time(true);
    std::printf("%zu tokens of 1088: split_heads and attention %.2f us, at once %.2f us\n", count, apart, at_once);
  }
}

}  // namespace
}  // namespace quadrille
