// SPDX-License-Identifier: Apache-2.0
// Builds the pages, launches, and the definition in double with its error bound.
#include "device/attention_case.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "device/random_data.h"

namespace quadrille::testing {
namespace {

using numerics::bf16_to_f32;

uint64_t name_of(int64_t kind, int64_t sequence, int64_t head, int64_t position) {
  return hash(hash(static_cast<uint64_t>(kind * 1000003 + sequence), static_cast<uint64_t>(head)),
              static_cast<uint64_t>(position));
}
// About N(0, 1), without the outliers of normal_number: a softmax over them would be one key.
uint16_t plain_number(uint64_t name, int64_t dim) {
  const uint64_t h = hash(name, static_cast<uint64_t>(dim));
  const auto sum = static_cast<double>((h & 0xffffu) + (h >> 16 & 0xffffu) + (h >> 32 & 0xffffu) + (h >> 48));
  return numerics::bf16_from_f32(static_cast<float>((sum - 131070.0) * 2.643e-5));
}

}  // namespace

float AttentionShape::scale() const {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
}

uint16_t AttentionCase::query(const QueryToken& token, int64_t head, int64_t dim) const {
  return plain_number(name_of(3, token.sequence, head, token.position), dim);
}

AttentionCase::AttentionCase(const AttentionShape& shape, const std::vector<int64_t>& contexts, device::Stream stream)
    : shape_(shape), contexts_(contexts), stream_(stream), table_(*must(kernels::device_table())) {
  const layout::KvTile map{shape.kv_heads(), shape.head_dim};
  int64_t num_pages = 1;  // page 0 belongs to nobody
  for (const int64_t context : contexts) {
    table_stride_ = std::max(table_stride_, (context + 63) / 64 + 1);
    num_pages += (context + 63) / 64;
    max_context_ = std::max(max_context_, context);
  }
  std::vector<int32_t> ids(static_cast<size_t>(num_pages - 1));
  std::iota(ids.begin(), ids.end(), 1);
  std::mt19937 random(7);
  std::shuffle(ids.begin(), ids.end(), random);
  std::vector<int32_t> table(contexts.size() * static_cast<size_t>(table_stride_), -1);
  std::vector<uint16_t> pages(static_cast<size_t>(num_pages * map.page_size()), 0xffff);
  size_t next = 0;
  for (size_t s = 0; s < contexts.size(); ++s) {
    for (int64_t position = 0; position < contexts[s]; ++position) {
      int32_t& id = table[s * static_cast<size_t>(table_stride_) + static_cast<size_t>(position / 64)];
      if (position % 64 == 0) id = ids[next++];
      uint16_t* page = pages.data() + id * map.page_size();
      for (int64_t kv = 0; kv < map.kv_heads; ++kv) {
        const auto sequence = static_cast<int64_t>(s);
        const uint64_t key_name = name_of(1, sequence, kv, position), value_name = name_of(2, sequence, kv, position);
        for (int64_t dim = 0; dim < map.padded_dim(); ++dim) {
          const bool is_padding = dim >= shape.head_dim;
          page[map.key_offset(kv, position % 64, dim)] = is_padding ? 0 : plain_number(key_name, dim);
          page[map.value_offset(kv, position % 64, dim)] = is_padding ? 0 : plain_number(value_name, dim);
        }
      }
    }
  }
  pages_ = memory_.copy_of(pages, stream);
  page_table_ = memory_.copy_of(table, stream);
}

kernels::DeviceAttention AttentionCase::problem(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch,
                                                Memory& memory) const {
  const auto num_tokens = static_cast<int64_t>(tokens.size());
  std::vector<uint16_t> q;
  std::vector<int32_t> position, sequence;
  for (const QueryToken& token : tokens) {
    position.push_back(token.position);
    sequence.push_back(token.sequence);
    for (int64_t i = 0; i < shape_.row(); ++i) q.push_back(query(token, i / shape_.head_dim, i % shape_.head_dim));
  }
  kernels::DeviceAttention p;
  p.num_heads = shape_.num_heads;
  p.heads_per_kv = shape_.heads_per_kv;
  p.head_phase = shape_.head_phase;
  p.window = shape_.window;
  p.scale = shape_.scale();
  p.pages = {pages_, page_table_, table_stride_, shape_.kv_heads(), shape_.head_dim};
  p.q = memory.copy_of(q, stream_);
  p.position = memory.copy_of(position, stream_);
  p.sequence = memory.copy_of(sequence, stream_);
  p.out = memory.take<uint16_t>(num_tokens * shape_.row(), 16, stream_);
  p.max_context = max_context_;
  std::vector<int32_t> singles(tokens.size());
  std::vector<kernels::QueryTile> tiles(tokens.size());
  kernels::AttentionPlan plan{num_tokens, 0};
  if (launch.is_planned || launch.tile_tokens > 0) {
    const int64_t most = kernels::attention_tile_tokens(shape_.heads_per_kv, shape_.head_dim);
    plan = kernels::plan_attention(sequence.data(), num_tokens, launch.is_planned ? most : launch.tile_tokens,
                                   singles.data(), tiles.data());
    p.singles = memory.copy_of(singles, stream_);
    p.tiles = memory.copy_of(tiles, stream_);
  }
  p.num_singles = plan.num_singles;
  p.num_tiles = plan.num_tiles;
  if (launch.is_spread) {
    p.workspace_floats =
        kernels::attention_workspace_floats(p.num_singles, shape_.num_heads, shape_.head_dim, max_context_);
    p.workspace = memory.take<float>(p.workspace_floats, 16, stream_);
  }
  if ((launch.is_spread && launch.counts) || launch.has_codes) {
    const int64_t count = kernels::attention_counters(p.num_singles, shape_.kv_heads(), shape_.heads_per_kv);
    p.counters = memory.take<int32_t>(count, 4, stream_, 0);
  }
  if (launch.has_codes) {
    p.act_pitch = (shape_.row() + 127) / 128 * 128;
    p.act = memory.take<uint8_t>(num_tokens * p.act_pitch, 16, stream_);
    p.act_scale = memory.take<float>(num_tokens, 4, stream_);
  }
  return p;
}

void AttentionCase::prepare(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch,
                            Prepared* prepared) const {
  prepared->num_tokens = static_cast<int64_t>(tokens.size());
  prepared->p = problem(tokens, launch, prepared->memory);
}

std::vector<uint16_t> AttentionCase::result(const Prepared& prepared) const {
  const kernels::DeviceAttention& p = prepared.p;
  const auto fail = [](const std::string& text) {
    if (!text.empty()) throw std::runtime_error(text);
  };
  if (p.counters != nullptr) {
    const int64_t count = kernels::attention_counters(p.num_singles, shape_.kv_heads(), shape_.heads_per_kv);
    const auto counters = on_host<int32_t>(p.counters, count, stream_);
    fail(std::all_of(counters.begin(), counters.end(), [](int32_t c) { return c == 0; }) ? ""
                                                                                         : "a counter is not zero");
  }
  if (p.act != nullptr) {
    PoolMemory memory;
    kernels::QuantizeTokens quantize;
    quantize.num_tokens = prepared.num_tokens;
    quantize.k = shape_.row();
    quantize.act_pitch = p.act_pitch;
    quantize.x = p.out;
    quantize.act = memory.take<uint8_t>(prepared.num_tokens * p.act_pitch, 16, stream_);
    quantize.act_scale = memory.take<float>(prepared.num_tokens, 4, stream_);
    table_.quantize_tokens(quantize, stream_);
    const auto bytes = [&](const uint8_t* act) {
      return on_host<uint8_t>(act, prepared.num_tokens * p.act_pitch, stream_);
    };
    const auto scales = [&](const float* scale) { return on_host<uint32_t>(scale, prepared.num_tokens, stream_); };
    fail(bytes(p.act) == bytes(quantize.act) ? "" : "codes are not those of quantize_tokens");
    fail(scales(p.act_scale) == scales(quantize.act_scale) ? "" : "scales are not those of quantize_tokens");
  }
  auto out = on_host<uint16_t>(p.out, prepared.num_tokens * shape_.row(), stream_);
  fail(prepared.memory.harmed(stream_));
  return out;
}

std::vector<uint16_t> AttentionCase::run(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch) {
  Prepared prepared;
  prepare(tokens, launch, &prepared);
  this->launch(prepared);
  return result(prepared);
}

float AttentionCase::time_in_graph(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch, int rounds) {
  constexpr int kLaunches = 50;
  Prepared prepared;
  prepare(tokens, launch, &prepared);
  auto graph = must(device::Graph::capture(stream_, [&]() -> Status {
    for (int i = 0; i < kLaunches; ++i) this->launch(prepared);
    return {};
  }));
  const auto begin = must(device::OwnedEvent::create(true)), end = must(device::OwnedEvent::create(true));
  float best = 1e9f;
  for (int i = 0; i < rounds; ++i) {
    must(device::record(begin.get(), stream_));
    must(graph.launch(stream_));
    must(device::record(end.get(), stream_));
    must(device::synchronize(end.get()));
    best = std::min(best, must(device::elapsed_ms(begin.get(), end.get())) / kLaunches);
  }
  return best;
}

float AttentionCase::time(const std::vector<QueryToken>& tokens, const AttentionLaunch& launch, int rounds) {
  PoolMemory memory;
  const kernels::DeviceAttention p = problem(tokens, launch, memory);
  const auto begin = must(device::OwnedEvent::create(true)), end = must(device::OwnedEvent::create(true));
  float best = 1e9f;
  for (int i = 0; i < rounds; ++i) {
    must(device::record(begin.get(), stream_));
    table_.attention(p, stream_);
    must(device::record(end.get(), stream_));
    must(device::synchronize(end.get()));
    best = std::min(best, must(device::elapsed_ms(begin.get(), end.get())));
  }
  return best;
}

// The bound of docs/kernels/decoder.md: weights are off by a relative `e`, which moves a weighted mean by e times the
// mean distance of the values from it; sums and folds add `f` of the mean magnitude; the result is rounded once.
std::string AttentionCase::difference(const std::vector<QueryToken>& tokens, const std::vector<uint16_t>& found,
                                      int64_t t) const {
  const QueryToken& token = tokens[static_cast<size_t>(t)];
  const int64_t last = token.position;
  const int64_t first = shape_.window > 0 ? std::max<int64_t>(0, last - shape_.window + 1) : 0;
  const double steps = static_cast<double>(layout::padded_head_dim(shape_.head_dim)) / 16;
  for (int64_t head = 0; head < shape_.num_heads; ++head) {
    const int64_t kv = (shape_.head_phase + head) / shape_.heads_per_kv;
    std::vector<double> weight;
    double top = -1e300, largest = 0, norm = 0;
    std::vector<double> q;
    for (int64_t d = 0; d < shape_.head_dim; ++d) q.push_back(bf16_to_f32(query(token, head, d)));
    for (int64_t j = first; j <= last; ++j) {
      double dot = 0, magnitude = 0;
      const uint64_t name = name_of(1, token.sequence, kv, j);
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        const double term = q[static_cast<size_t>(d)] * bf16_to_f32(plain_number(name, d));
        dot += term;
        magnitude += std::abs(term);
      }
      weight.push_back(dot * shape_.scale());
      top = std::max(top, weight.back());
      largest = std::max(largest, magnitude * shape_.scale());
    }
    for (double& w : weight) norm += w = std::exp(w - top);
    const double score_error = steps * 17 * 0x1p-23 * largest + 3 * 0x1p-23 * (2 * largest);
    const double e = (0x1p-8 + 0x1p-21 + 2 * score_error) * 1.01;
    const double blocks = static_cast<double>(last / 64 - first / 64 + 1);
    const double f = 4 * 17 * 0x1p-23 * 2 + blocks * 0x1p-20;
    std::vector<uint64_t> names;
    for (int64_t j = first; j <= last; ++j) names.push_back(name_of(2, token.sequence, kv, j));
    for (int64_t d = 0; d < shape_.head_dim; ++d) {
      double mean = 0, spread = 0, size = 0;
      std::vector<double> v;
      for (size_t j = 0; j < names.size(); ++j) {
        v.push_back(bf16_to_f32(plain_number(names[j], d)));
        mean += weight[j] / norm * v[j];
        size += weight[j] / norm * std::abs(v[j]);
      }
      for (size_t j = 0; j < names.size(); ++j) spread += weight[j] / norm * std::abs(v[j] - mean);
      const double bound = e * spread + f * size + 0x1p-8 * std::abs(mean);
      const double y = bf16_to_f32(found[static_cast<size_t>(t * shape_.row() + head * shape_.head_dim + d)]);
      if (!(std::abs(y - mean) <= bound)) {
        return fmt::format("token {} (sequence {}, position {}) head {} dimension {}: {} beside {}, bound {}", t,
                           token.sequence, token.position, head, d, y, mean, bound);
      }
    }
  }
  return "";
}

}  // namespace quadrille::testing
