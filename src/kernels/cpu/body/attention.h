// SPDX-License-Identifier: Apache-2.0
// Paged attention over key blocks of 64 at absolute positions (section 5 of the contract): a running softmax whose
// chains are the same for prefill, every chunk size and decode. Up to four query heads share one reading of a block.
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

// H query heads of one KV head on their way over the key blocks of one token.
template <int H>
struct RunningSoftmax {
  const float* q[H];  // [head_dim]
  float* out[H];      // [head_dim] unnormalised sums
  float top[H];       // maximum so far
  float norm[H];      // sum of the weights so far
};

// One key block as a head sees it: positions [begin, end) of it are visible.
template <class Kv>
struct KeyBlock {
  const typename Kv::Element* keys;    // [head_dim, 64]
  const typename Kv::Element* values;  // [64, head_dim]
  int64_t begin;
  int64_t end;
  int64_t head_dim;
};

// score[h][j] = scale * (fma chain over d of q[d] * k[d][j]) for every vector that holds a visible key.
template <class S, class Kv, int H>
QD_HD void block_scores(const RunningSoftmax<H>& state, const KeyBlock<Kv>& block, float scale,
                        float (&score)[H][kKeyBlock]) {
  constexpr int kVectors = 2;
  constexpr int kWidth = kVectors * S::kLanes;
  for (int64_t j = block.begin / kWidth * kWidth; j < block.end; j += kWidth) {
    typename S::F chain[H][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < H * kVectors; ++i) chain[i / kVectors][i % kVectors] = S::zero();
    for (int64_t d = 0; d < block.head_dim; ++d) {
      typename S::F key[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) key[v] = Kv::template load<S>(block.keys + d * kKeyBlock + j + v * S::kLanes);
#pragma GCC unroll 8
      for (int h = 0; h < H; ++h) {
        const typename S::F q = S::set(state.q[h][d]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) chain[h][v] = S::fma(q, key[v], chain[h][v]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < H * kVectors; ++i) {
      S::store(score[i / kVectors] + j + i % kVectors * S::kLanes,
               S::mul(S::set(scale), chain[i / kVectors][i % kVectors]));
    }
  }
}

// score -> weights exp(score - top), 0 where a key is not visible; returns exp(old top - new top).
template <class S>
QD_HD float block_weights(int64_t begin, int64_t end, float* score, float& top, float& norm) {
  using F = typename S::F;
  const float minus_infinity = -__builtin_inff();
  const int64_t first = begin / S::kLanes * S::kLanes;
  F tops = S::set(top);
  for (int64_t j = first; j < end; j += S::kLanes) {
    tops = S::max(S::keep_range(S::load(score + j), S::set(minus_infinity), j, begin, end), tops);
  }
  alignas(64) float lanes[S::kLanes];
  S::store(lanes, tops);
  float new_top = lanes[0];
  for (int l = 1; l < S::kLanes; ++l) new_top = lanes[l] > new_top ? lanes[l] : new_top;
  for (int64_t j = 0; j < kKeyBlock; j += S::kLanes) {
    F weight = S::zero();
    if (j >= first && j < end) {
      weight = exp_lanes<S>(S::sub(S::load(score + j), S::set(new_top)));
      weight = S::keep_range(weight, S::zero(), j, begin, end);
    }
    S::store(score + j, weight);
  }
  const float keep = top == minus_infinity ? 0.0f : numerics::exp_f32(top - new_top);
  const float sum = sum32<S>(
      kKeyBlock, [score](int64_t i, F lane) { return S::add(lane, S::load(score + i)); },
      [score](int64_t i, float lane) { return lane + score[i]; });
  norm = __builtin_fmaf(norm, keep, sum);
  top = new_top;
  return keep;
}

// Columns [d, d + W * kLanes) of the sums (`count` of them where W is 1 and the row ends inside the vector):
// out = out * keep, then one chain over the visible keys ascending.
template <class S, class Kv, int H, int W, bool kPart>
QD_HD void add_values(RunningSoftmax<H>& state, const KeyBlock<Kv>& block, const float (&weight)[H][kKeyBlock],
                      const float (&keep)[H], int64_t d, int64_t count) {
  typename S::F chain[H][W];
#pragma GCC unroll 8
  for (int i = 0; i < H * W; ++i) {
    const float* from = state.out[i / W] + d + i % W * S::kLanes;
    const typename S::F out = kPart ? S::load_part(from, count) : S::load(from);
    chain[i / W][i % W] = S::mul(out, S::set(keep[i / W]));
  }
  for (int64_t j = block.begin; j < block.end; ++j) {
    typename S::F value[W];
#pragma GCC unroll 2
    for (int w = 0; w < W; ++w) {
      const typename Kv::Element* from = block.values + j * block.head_dim + d + w * S::kLanes;
      value[w] = kPart ? Kv::template load_part<S>(from, count) : Kv::template load<S>(from);
    }
#pragma GCC unroll 8
    for (int i = 0; i < H * W; ++i) {
      chain[i / W][i % W] = S::fma(S::set(weight[i / W][j]), value[i % W], chain[i / W][i % W]);
    }
  }
#pragma GCC unroll 8
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
  for (int h = 0; h < H; ++h) {
    keep[h] = block_weights<S>(block.begin, block.end, score[h], state.top[h], state.norm[h]);
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
    const int64_t offset = (pages[b] * p.num_kv_heads + kv_head) * p.head_dim * kKeyBlock;
    KeyBlock<Kv> block;
    block.keys = static_cast<const typename Kv::Element*>(p.keys) + offset;
    block.values = static_cast<const typename Kv::Element*>(p.values) + offset;
    block.begin = first > b * kKeyBlock ? first - b * kKeyBlock : 0;
    block.end = last - b * kKeyBlock < kKeyBlock - 1 ? last - b * kKeyBlock + 1 : kKeyBlock;
    block.head_dim = p.head_dim;
    add_block<S, Kv, H>(state, block, p.scale);
  }
  const bool to_bf16 = p.rounding == Rounding::kBf16;
  for (int h = 0; h < H; ++h) {
    float* out = p.out + (token * p.num_heads + head + h) * p.head_dim;
    for (int64_t d = 0; d < p.head_dim; ++d) {
      out[d] = numerics::round_output(state.out[h][d] / state.norm[h], to_bf16);
    }
  }
}

template <class S, class Kv>
void attend_kv_head(const Attention& p, int64_t token, int64_t kv_head, float* scratch) {
  static_assert(kAttentionHeads == 4);
  const int64_t heads = p.num_heads / p.num_kv_heads;
  int64_t head = kv_head * heads;
  const int64_t end = head + heads;
  for (; head + 4 <= end; head += 4) attend<S, Kv, 4>(p, token, kv_head, head, scratch);
  for (; head + 2 <= end; head += 2) attend<S, Kv, 2>(p, token, kv_head, head, scratch);
  if (head < end) attend<S, Kv, 1>(p, token, kv_head, head, scratch);
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
