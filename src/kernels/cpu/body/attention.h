// SPDX-License-Identifier: Apache-2.0
// Paged attention over key blocks of 64 at absolute positions (section 5 of the contract): a running softmax whose
// chains are the same for prefill, every chunk size and decode. Up to eight query heads share one reading of a block.
#pragma once

#include "kernels/api/problems.h"
#include "kernels/cpu/body/exp.h"
#include "kernels/cpu/body/rowwise.h"
#include "kernels/cpu/isa_parts.h"

namespace quadrille::kernels::cpu {
namespace {

constexpr int64_t kKeyBlock = 64;  // positions of a page (layout/kv_page.h)

struct KvBf16 {
  using Element = uint16_t;
  template <class S>
  QD_HD static typename S::F load(const uint16_t* p) {
    return S::load_bf16(p);
  }
  template <class S>
  QD_HD static typename S::F load_part(const uint16_t* p, int64_t count) {
    return S::load_bf16_part(p, count);
  }
};

struct KvF32 {
  using Element = float;
  template <class S>
  QD_HD static typename S::F load(const float* p) {
    return S::load(p);
  }
  template <class S>
  QD_HD static typename S::F load_part(const float* p, int64_t count) {
    return S::load_part(p, count);
  }
};

// Query heads that share one reading of a key block: their chains, two vectors each, fill most of the registers.
template <class S>
constexpr int kHeadsTogether = S::kLanes == 16 ? kAttentionHeads : kAttentionHeads / 2;

// H query heads of one KV head on their way over the key blocks of one token.
template <int H>
struct RunningSoftmax {
  const float* q[H];  // [head_dim]
  float* out[H];      // [head_dim] unnormalised sums
  float top[H];       // maximum so far
  float norm[H];      // sum of the weights so far
};

// One key block as a head sees it: positions [begin, end) of it are visible. What is read next is fetched meanwhile:
// each step touches its own place in the next block (which is this one at the end), all of it over the steps.
template <class Kv>
struct KeyBlock {
  using Element = typename Kv::Element;
  const Element* keys;    // [head_dim, 64]
  const Element* values;  // [64, head_dim]
  const Element* next_keys;
  const Element* next_values;
  int64_t begin;
  int64_t end;
  int64_t head_dim;

  bool is_whole() const { return begin == 0 && end == kKeyBlock; }
};

template <int kElements, class Element>
QD_HD void fetch(const Element* from) {
  constexpr int kLine = 64 / sizeof(Element);
  if constexpr (kElements * 2 >= kLine) {
    for (int i = 0; i < kElements; i += kLine) __builtin_prefetch(from + i, 0, 2);
  }
}

// score[h][j] = scale * (fma chain over d of q[d] * k[d][j]) for every vector that holds a visible key.
template <class S, class Kv, int H>
QD_HD void block_scores(const RunningSoftmax<H>& state, const KeyBlock<Kv>& block, float scale,
                        float (&score)[H][kKeyBlock]) {
  constexpr int kVectors = 2;
  constexpr int kWidth = kVectors * S::kLanes;
  for (int64_t j = block.begin / kWidth * kWidth; j < block.end; j += kWidth) {
    typename S::F chain[H][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < H * kVectors; ++i) chain[i / kVectors][i % kVectors] = S::zero();
    for (int64_t d = 0; d < block.head_dim; ++d) {
      const int64_t at = d * kKeyBlock + j;
      fetch<kWidth>(block.next_keys + at);
      typename S::F key[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) key[v] = Kv::template load<S>(block.keys + at + v * S::kLanes);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const typename S::F q = S::set(state.q[h][d]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) chain[h][v] = S::fma(q, key[v], chain[h][v]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < H * kVectors; ++i) {
      S::store(score[i / kVectors] + j + i % kVectors * S::kLanes,
               S::mul(S::set(scale), chain[i / kVectors][i % kVectors]));
    }
  }
}

// The largest of the visible scores and `top`; NaN scores are passed over.
template <class S, bool kWhole>
QD_HD float block_top(int64_t begin, int64_t end, const float* score, float top) {
  using F = typename S::F;
  const F nothing = S::set(-__builtin_inff());
  F tops = S::set(top);
  for (int64_t j = begin / S::kLanes * S::kLanes; j < end; j += S::kLanes) {
    const F seen = S::load(score + j);
    tops = S::max(kWhole ? seen : S::keep_range(seen, nothing, j, begin, end), tops);
  }
  alignas(64) float lanes[S::kLanes];
  S::store(lanes, tops);
#pragma GCC unroll 4
  for (int half = S::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int l = 0; l < half; ++l) lanes[l] = lanes[l + half] > lanes[l] ? lanes[l + half] : lanes[l];
  }
  return lanes[0];
}

// score -> weights exp(score - top), 0 where a key is not visible; returns their sum.
template <class S, bool kWhole>
QD_HD float block_weights(int64_t begin, int64_t end, float* score, float top) {
  using F = typename S::F;
  const int64_t first = begin / S::kLanes * S::kLanes;
  for (int64_t j = 0; j < kKeyBlock; j += S::kLanes) {
    F weight = S::zero();
    if (kWhole || (j >= first && j < end)) {
      weight = exp_lanes<S>(S::sub(S::load(score + j), S::set(top)));
      if (!kWhole) weight = S::keep_range(weight, S::zero(), j, begin, end);
    }
    S::store(score + j, weight);
  }
  return sum32<S>(
      kKeyBlock, [score](int64_t i, F lane) { return S::add(lane, S::load(score + i)); },
      [score](int64_t i, float lane) { return lane + score[i]; });
}

// Scores become weights, the maxima and norms go on; keep[h] = exp(old top - new top).
template <class S, class Kv, int H, bool kWhole>
QD_HD void block_softmax(RunningSoftmax<H>& state, const KeyBlock<Kv>& block, float (&score)[H][kKeyBlock],
                         float (&keep)[H]) {
  constexpr int kPadded = (H + S::kLanes - 1) / S::kLanes * S::kLanes;
  alignas(64) float top[H], fall[kPadded] = {};
#pragma GCC unroll 8
  for (int h = 0; h < H; ++h) {
    top[h] = block_top<S, kWhole>(block.begin, block.end, score[h], state.top[h]);
    fall[h] = state.top[h] - top[h];
  }
  for (int h = 0; h < kPadded; h += S::kLanes) S::store(fall + h, exp_lanes<S>(S::load(fall + h)));
  for (int h = 0; h < H; ++h) {
    keep[h] = state.top[h] == -__builtin_inff() ? 0.0f : fall[h];
    const float sum = block_weights<S, kWhole>(block.begin, block.end, score[h], top[h]);
    state.norm[h] = __builtin_fmaf(state.norm[h], keep[h], sum);
    state.top[h] = top[h];
  }
}

// Columns [d, d + W * kLanes) of the sums (`count` of them where W is 1 and the row ends inside the vector):
// out = out * keep, then one chain over the visible keys ascending.
template <class S, class Kv, int H, int W, bool kPart>
QD_HD void add_values(RunningSoftmax<H>& state, const KeyBlock<Kv>& block, const float (&weight)[H][kKeyBlock],
                      const float (&keep)[H], int64_t d, int64_t count) {
  typename S::F chain[H][W];
#pragma GCC unroll 16
  for (int i = 0; i < H * W; ++i) {
    const float* from = state.out[i / W] + d + i % W * S::kLanes;
    const typename S::F out = kPart ? S::load_part(from, count) : S::load(from);
    chain[i / W][i % W] = S::mul(out, S::set(keep[i / W]));
  }
  for (int64_t j = block.begin; j < block.end; ++j) {
    const int64_t at = j * block.head_dim + d;
    if constexpr (!kPart) fetch<W * S::kLanes>(block.next_values + at);
    typename S::F value[W];
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) {
      const typename Kv::Element* from = block.values + at + w * S::kLanes;
      value[w] = kPart ? Kv::template load_part<S>(from, count) : Kv::template load<S>(from);
    }
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) {
      const typename S::F factor = S::set(weight[h][j]);
#pragma GCC unroll 2
      for (int w = 0; w < W; ++w) chain[h][w] = S::fma(factor, value[w], chain[h][w]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < H * W; ++i) {
    float* to = state.out[i / W] + d + i % W * S::kLanes;
    if constexpr (kPart) {
      S::store_part(to, chain[i / W][i % W], count);
    } else {
      S::store(to, chain[i / W][i % W]);
    }
  }
}

template <class S, class Kv, int H>
QD_HD void add_block(RunningSoftmax<H>& state, const KeyBlock<Kv>& block, float scale) {
  alignas(64) float score[H][kKeyBlock];
  float keep[H];
  block_scores<S, Kv, H>(state, block, scale, score);
  if (block.is_whole()) {
    block_softmax<S, Kv, H, true>(state, block, score, keep);
  } else {
    block_softmax<S, Kv, H, false>(state, block, score, keep);
  }
  int64_t d = 0;
  for (; d + 2 * S::kLanes <= block.head_dim; d += 2 * S::kLanes) {
    add_values<S, Kv, H, 2, false>(state, block, score, keep, d, 0);
  }
  for (; d + S::kLanes <= block.head_dim; d += S::kLanes) {
    add_values<S, Kv, H, 1, false>(state, block, score, keep, d, 0);
  }
  if (d < block.head_dim) add_values<S, Kv, H, 1, true>(state, block, score, keep, d, block.head_dim - d);
}

// Positions [first, last] of a token's sequence as block b of one KV head has them.
template <class Kv>
QD_HD KeyBlock<Kv> key_block(const Attention& p, const int32_t* pages, int64_t kv_head, int64_t b, int64_t first,
                             int64_t last) {
  const int64_t size = p.head_dim * kKeyBlock;
  const int64_t offset = (pages[b] * p.num_kv_heads + kv_head) * size;
  const int64_t next = b < last / kKeyBlock ? (pages[b + 1] * p.num_kv_heads + kv_head) * size : offset;
  const auto* keys = static_cast<const typename Kv::Element*>(p.keys);
  const auto* values = static_cast<const typename Kv::Element*>(p.values);
  KeyBlock<Kv> block;
  block.keys = keys + offset;
  block.values = values + offset;
  block.next_keys = keys + next;
  block.next_values = values + next;
  block.begin = first > b * kKeyBlock ? first - b * kKeyBlock : 0;
  block.end = last - b * kKeyBlock < kKeyBlock - 1 ? last - b * kKeyBlock + 1 : kKeyBlock;
  block.head_dim = p.head_dim;
  return block;
}

// Query heads head .. head + H - 1 of one token, all of one KV head.
template <class S, class Kv, int H>
__attribute__((noinline)) void attend(const Attention& p, int64_t token, int64_t kv_head, int64_t head,
                                      float* scratch) {
  const int64_t last = p.position[token];
  const int64_t first = p.window > 0 && last - p.window + 1 > 0 ? last - p.window + 1 : 0;
  RunningSoftmax<H> state;
  for (int h = 0; h < H; ++h) {
    state.q[h] = p.q + token * p.q_stride + (head + h) * p.head_dim;
    state.out[h] = scratch + h * p.head_dim;
    state.top[h] = -__builtin_inff();
    state.norm[h] = 0.0f;
    for (int64_t d = 0; d < p.head_dim; ++d) state.out[h][d] = 0.0f;
  }
  const int32_t* pages = p.page_table + p.sequence[token] * p.page_table_stride;
  for (int64_t b = first / kKeyBlock; b <= last / kKeyBlock; ++b) {
    add_block<S, Kv, H>(state, key_block<Kv>(p, pages, kv_head, b, first, last), p.scale);
  }
  const bool to_bf16 = p.rounding == Rounding::kBf16;
  for (int h = 0; h < H; ++h) {
    float* out = p.out + (token * p.num_heads + head + h) * p.head_dim;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      out[d] = numerics::round_output(state.out[h][d] / state.norm[h], to_bf16);
    }
  }
}

// As many heads of [head, end) as fit in groups of H, the rest in groups of half of that.
template <class S, class Kv, int H>
void attend_heads(const Attention& p, int64_t token, int64_t kv_head, int64_t head, int64_t end, float* scratch) {
  for (; head + H <= end; head += H) attend<S, Kv, H>(p, token, kv_head, head, scratch);
  if constexpr (H > 1) attend_heads<S, Kv, H / 2>(p, token, kv_head, head, end, scratch);
}

template <class S, class Kv>
void attend_kv_head(const Attention& p, int64_t token, int64_t kv_head, float* scratch) {
  const int64_t heads = p.num_heads / p.num_kv_heads;
  attend_heads<S, Kv, kHeadsTogether<S>>(p, token, kv_head, kv_head * heads, (kv_head + 1) * heads, scratch);
}

template <class S>
void attention_share(const Attention& p, int64_t begin, int64_t end, float* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    if (p.kv_type == KvType::kBf16) {
      attend_kv_head<S, KvBf16>(p, i / p.num_kv_heads, i % p.num_kv_heads, scratch);
    } else {
      attend_kv_head<S, KvF32>(p, i / p.num_kv_heads, i % p.num_kv_heads, scratch);
    }
  }
}

}  // namespace
}  // namespace quadrille::kernels::cpu
