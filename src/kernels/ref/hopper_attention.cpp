// SPDX-License-Identifier: Apache-2.0
// `hopper`: attention in fp32, key blocks of 64 at absolute positions, by the definition of docs/numerics.md section 5.
#include "kernels/ref/counted.h"
#include "kernels/ref/hopper_kernels.h"
#include "kernels/ref/paged_keys.h"
#include "numerics/elementwise.h"
#include "numerics/exp.h"
#include "numerics/lane_sum.h"

namespace quadrille::kernels::ref {
namespace {

constexpr int64_t kBlock = layout::kPagePositions;
const float kMinusInfinity = -__builtin_inff();

// One query head on its way over the key blocks.
struct Running {
  float top = kMinusInfinity;
  float norm = 0.0f;
};

// score[64] = scale * (fma chain over d of q[d] * k[d][j]); entries of unseen keys hold no meaning.
template <typename Load>
QD_ALWAYS_INLINE void block_scores(const float* q, const Load& keys, int64_t head_dim, float scale, float* score) {
  for (int64_t j = 0; j < kBlock; ++j) score[j] = 0.0f;
  for (int64_t d = 0; d < head_dim; ++d) {
    const float value = q[d];
    for (int64_t j = 0; j < kBlock; ++j) score[j] = __builtin_fmaf(value, keys[d * kBlock + j], score[j]);
  }
  for (int64_t j = 0; j < kBlock; ++j) score[j] = scale * score[j];
}

// Keys [begin, end) of a block are seen: one step of the running softmax over out[head_dim].
template <typename Load>
QD_ALWAYS_INLINE void add_block(Running& state, float* score, int64_t begin, int64_t end, const Load& values,
                                int64_t head_dim, float* out) {
  float top = state.top;
  for (int64_t j = begin; j < end; ++j) top = score[j] > top ? score[j] : top;
  const float keep = state.top == kMinusInfinity ? 0.0f : numerics::exp_f32(state.top - top);
  for (int64_t j = 0; j < kBlock; ++j) {
    score[j] = j >= begin && j < end ? numerics::exp_f32(score[j] - top) : 0.0f;
  }
  state.norm = __builtin_fmaf(state.norm, keep, numerics::lane_sum(score, kBlock));
  for (int64_t d = 0; d < head_dim; ++d) out[d] = out[d] * keep;
  for (int64_t j = begin; j < end; ++j) {
    const float weight = score[j];
    for (int64_t d = 0; d < head_dim; ++d) out[d] = __builtin_fmaf(weight, values[j * head_dim + d], out[d]);
  }
  state.top = top;
}

template <typename Load, typename Element>
QD_ALWAYS_INLINE void attend(const Attention& p, int64_t token, int64_t head) {
  const int64_t kv_head = head / (p.num_heads / p.num_kv_heads);
  const KeyRange range = visible_keys(p, token);
  const float* q = p.q + token * p.q_stride + head * p.head_dim;
  float* out = p.out + (token * p.num_heads + head) * p.head_dim;
  alignas(64) float score[kBlock];
  Running state;
  for (int64_t d = 0; d < p.head_dim; ++d) out[d] = 0.0f;
  for (int64_t block = range.first / kBlock; block <= range.last / kBlock; ++block) {
    const int64_t offset = page_offset(p, token, kv_head, block);
    const int64_t begin = range.first > block * kBlock ? range.first - block * kBlock : 0;
    const int64_t end = range.last - block * kBlock < kBlock - 1 ? range.last - block * kBlock + 1 : kBlock;
    block_scores(q, Load{static_cast<const Element*>(p.keys) + offset}, p.head_dim, p.scale, score);
    add_block(state, score, begin, end, Load{static_cast<const Element*>(p.values) + offset}, p.head_dim, out);
  }
  for (int64_t d = 0; d < p.head_dim; ++d) {
    out[d] = numerics::round_output(out[d] / state.norm, p.rounding == Rounding::kBf16);
  }
}

QD_ALWAYS_INLINE void attend_token(const Attention& p, int64_t token) {
  for (int64_t head = 0; head < p.num_heads; ++head) {
    if (p.kv_type == KvType::kBf16) {
      attend<LoadBf16, uint16_t>(p, token, head);
    } else {
      attend<LoadF32, float>(p, token, head);
    }
  }
}

void attend_token_plain(const Attention& p, int64_t token) {
  attend_token(p, token);
}
QD_TARGET_FMA void attend_token_fma(const Attention& p, int64_t token) {
  attend_token(p, token);
}

}  // namespace

void hopper_attention(const Attention& p, const KernelContext& context) {
  const auto attend_one = has_fma() ? attend_token_fma : attend_token_plain;
  for_parts(context, p.num_tokens, [&](int64_t token) { attend_one(p, token); });
}

}  // namespace quadrille::kernels::ref
