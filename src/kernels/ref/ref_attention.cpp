// SPDX-License-Identifier: Apache-2.0
// `ref`: softmax attention over the visible keys in double, in one pass per query, rounded to fp32 once.
#include <cmath>
#include <limits>

#include "kernels/ref/counted.h"
#include "kernels/ref/paged_keys.h"
#include "kernels/ref/ref_kernels.h"
#include "numerics/elementwise.h"

namespace quadrille::kernels::ref {
namespace {

constexpr int64_t kBlock = layout::kPagePositions;

template <typename Load, typename Element>
void attend(const Attention& p, int64_t token, int64_t head, double* score, double* sum) {
  const int64_t kv_head = head / (p.num_heads / p.num_kv_heads);
  const KeyRange range = visible_keys(p, token);
  const float* q = p.q + token * p.q_stride + head * p.head_dim;
  double top = -std::numeric_limits<double>::infinity();
  for (int64_t j = range.first; j <= range.last; ++j) {
    const Load key{static_cast<const Element*>(p.keys) + page_offset(p, token, kv_head, j / kBlock)};
    double dot = 0;
    for (int64_t d = 0; d < p.head_dim; ++d) dot += double{q[d]} * key[d * kBlock + j % kBlock];
    score[j - range.first] = p.scale * dot;
    if (score[j - range.first] > top) top = score[j - range.first];
  }
  double norm = 0;
  for (int64_t d = 0; d < p.head_dim; ++d) sum[d] = 0;
  for (int64_t j = range.first; j <= range.last; ++j) {
    const Load value{static_cast<const Element*>(p.values) + page_offset(p, token, kv_head, j / kBlock)};
    const double weight = std::exp(score[j - range.first] - top);
    norm += weight;
    for (int64_t d = 0; d < p.head_dim; ++d) sum[d] += weight * value[j % kBlock * p.head_dim + d];
  }
  float* out = p.out + (token * p.num_heads + head) * p.head_dim;
  for (int64_t d = 0; d < p.head_dim; ++d) {
    out[d] = numerics::round_output(static_cast<float>(sum[d] / norm), p.rounding == Rounding::kBf16);
  }
}

}  // namespace

void wide_attention(const Attention& p, const KernelContext& context) {
  int64_t longest = 0;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const KeyRange range = visible_keys(p, t);
    longest = range.last - range.first + 1 > longest ? range.last - range.first + 1 : longest;
  }
  // One scratch strip a part: parts are whole tokens, so that memory stays small for long prompts.
  const int64_t parts = p.num_tokens < 8 ? p.num_tokens : 8;
  if (parts == 0) return;
  const int64_t strip = longest + p.head_dim;
  double* scratch = context.scratch->take<double>(parts * strip);
  for_parts(context, parts, [&](int64_t part) {
    double* score = scratch + part * strip;
    for (int64_t token = part; token < p.num_tokens; token += parts) {
      for (int64_t head = 0; head < p.num_heads; ++head) {
        if (p.kv_type == KvType::kBf16) {
          attend<LoadBf16, uint16_t>(p, token, head, score, score + longest);
        } else {
          attend<LoadF32, float>(p, token, head, score, score + longest);
        }
      }
    }
  });
}

}  // namespace quadrille::kernels::ref
