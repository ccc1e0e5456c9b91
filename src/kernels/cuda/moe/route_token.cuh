// SPDX-License-Identifier: Apache-2.0
// moe::route_tokens for one token by one warp: lanes stride over the experts. Up to 512 experts: in registers. More:
// logits and selection keys in shared memory, and the next best is a ranking's next; where they do not fit there,
// computed again whenever they are looked at. Used by route_tokens.cu and route_and_plan.cu.
#pragma once

#include <cstdint>

#include "kernels/api/device_problems.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/exp.h"
#include "numerics/silu.h"

namespace quadrille::kernels::cuda {

inline constexpr int kRouteLanes = 32;
inline constexpr float kLowestScore = -__builtin_inff();

// Words of shared memory a warp. Kept: logits or scores [experts], keys [experts], group keys [groups]; else: bits
// [groups / 32].
constexpr int64_t kept_route_words(int64_t num_experts, int64_t num_groups) {
  return 2 * num_experts + (num_groups > 1 ? num_groups : 0);
}

// One token.
template <bool kKept>
struct Token {
  const DeviceRouteTokens& p;
  const float* logits;
  int lane;
  int32_t experts, groups, group_size;
  uint32_t* keys;
  uint32_t* group_keys;
  uint32_t* group_bits;
  float maximum, sum;  // of the softmax over all experts

  __device__ float score(int32_t e) const {
    const float logit = logits[e];
    if (p.scoring == Scoring::kSoftmaxBeforeTopK) return numerics::exp_f32(logit - maximum) / sum;
    return p.scoring == Scoring::kSigmoid ? numerics::sigmoid(logit) : logit;
  }
  __device__ uint32_t computed_key(int32_t e) const {
    const float value = score(e);
    return order_key(p.correction_bias != nullptr ? value + __ldg(p.correction_bias + e) : value);
  }
  __device__ uint32_t key(int32_t e) const {
    if constexpr (kKept) return keys[e];
    if (groups > 1 && (group_bits[e / group_size / 32] >> (e / group_size % 32) & 1u) == 0) return kNoKey;
    return computed_key(e);
  }

  __device__ void begin() {
    if constexpr (kKept) {
      float* kept = reinterpret_cast<float*>(keys) - experts;
#pragma unroll 4
      for (int32_t e = lane; e < experts; e += kRouteLanes) kept[e] = logits[e];
      logits = kept;
      __syncwarp();  // the logits stand
    }
    if (p.scoring == Scoring::kSoftmaxBeforeTopK) {
      maximum = kLowestScore;
      for (int32_t e = lane; e < experts; e += kRouteLanes) maximum = logits[e] > maximum ? logits[e] : maximum;
      maximum = warp_maximum(maximum);
      sum = 0.0f;
      for (int32_t e = lane; e < experts; e += kRouteLanes) {
        const float power = numerics::exp_f32(logits[e] - maximum);
        if constexpr (kKept) keys[e] = numerics::bits_of(power);
        sum = sum + power;
      }
      sum = warp_tree_sum(sum);
    }
    if constexpr (kKept) {
      for (int32_t e = lane; e < experts; e += kRouteLanes) {
        const bool has_power = p.scoring == Scoring::kSoftmaxBeforeTopK;
        const float value = has_power ? numerics::float_of(keys[e]) / sum : score(e);
        keys[e] = order_key(p.correction_bias != nullptr ? value + __ldg(p.correction_bias + e) : value);
      }
      __syncwarp();  // all keys stand
    }
  }

  // The key of a group's score; all lanes call it with the same group.
  __device__ uint32_t computed_group_key(int32_t group) const {
    uint32_t first = kLowestKey, second = kLowestKey;
    for (int32_t i = lane; i < group_size; i += kRouteLanes) {
      const int32_t e = group * group_size + i;
      const uint32_t here = kKept ? keys[e] : computed_key(e);
      second = here > first ? first : (here > second ? here : second);
      first = here > first ? here : first;
    }
    const uint32_t best = __reduce_max_sync(kWholeWarp, first);
    if (p.scoring != Scoring::kSigmoid || group_size == 1) return best;
    const int owner = __ffs(static_cast<int>(__ballot_sync(kWholeWarp, first == best))) - 1;
    const uint32_t next = __reduce_max_sync(kWholeWarp, lane == owner ? second : first);
    return order_key(score_of_key(best) + score_of_key(next));
  }

  // The best group after `last`.
  __device__ Ranked next_group(Ranked last) const {
    Ranked best = {kNoKey, 0x7fffffff};
    for (int32_t g = kKept ? lane : 0; g < groups; g += kKept ? kRouteLanes : 1) {
      const Ranked here = {kKept ? group_keys[g] : computed_group_key(g), g};
      if (comes_after(here, last) && comes_after(best, here)) best = here;
    }
    return warp_first(best);
  }

  // Experts of the groups that are not kept get no key.
  __device__ void keep_groups() const {
    if (groups == 1) return;
    if constexpr (kKept) {
      for (int32_t g = 0; g < groups; ++g) {
        const uint32_t of_group = computed_group_key(g);
        if (lane == 0) group_keys[g] = of_group;
      }
      __syncwarp();  // all group keys stand
    }
    Ranked last = {kAboveAllKeys, -1};
    for (int64_t i = 0; i < p.groups_kept; ++i) last = next_group(last);
    if constexpr (kKept) {
      for (int32_t e = lane; e < experts; e += kRouteLanes) {
        if (comes_after({group_keys[e / group_size], e / group_size}, last)) keys[e] = kNoKey;
      }
    } else {
      for (int32_t word = lane; word < (groups + 31) / 32; word += kRouteLanes) group_bits[word] = 0;
      __syncwarp();  // no bit is set
      for (int32_t g = 0; g < groups; ++g) {
        const bool out = comes_after({computed_group_key(g), g}, last);
        if (lane == 0 && !out) group_bits[g / 32] |= 1u << (g % 32);
      }
    }
    __syncwarp();  // every lane sees who is out
  }

  __device__ Ranked next_expert(Ranked last) const {
    Ranked best = {kNoKey, 0x7fffffff};
    for (int32_t e = lane; e < experts; e += kRouteLanes) {
      const Ranked here = {key(e), e};
      if (here.key != kNoKey && comes_after(here, last) && comes_after(best, here)) best = here;
    }
    return warp_first(best);
  }
};

// The weights of one token's choices: choice j belongs to lane j % 32, the first 32 in registers, the others (top_k is
// rarely above 8) where they are stored in the end. kFew: there are no others.
template <bool kFew>
struct Chosen {
  float* weights;
  int64_t count;
  int lane;
  float own;

  template <typename Step>
  __device__ void each(const Step& step) {
    if (lane < count) own = step(own);
    if constexpr (!kFew) {
      for (int64_t j = lane + kRouteLanes; j < count; j += kRouteLanes) weights[j] = step(weights[j]);
    }
  }
  __device__ float sum() {
    float total = 0.0f;
    each([&](float w) {
      total = total + w;
      return w;
    });
    return warp_tree_sum(total);
  }
};

template <bool kFew>
__device__ __forceinline__ void weigh(const DeviceRouteTokens& p, Chosen<kFew> chosen) {
  if (p.scoring == Scoring::kSoftmaxAfterTopK) {
    float maximum = kLowestScore;
    chosen.each([&](float w) {
      maximum = w > maximum ? w : maximum;
      return w;
    });
    maximum = warp_maximum(maximum);
    chosen.each([&](float w) { return numerics::exp_f32(w - maximum); });
    const float sum = chosen.sum();
    chosen.each([&](float w) { return w / sum; });
  }
  if (p.renormalise) {
    const float sum = chosen.sum() + p.renorm_epsilon;
    chosen.each([&](float w) { return w / sum; });
  }
  if (p.routed_scaling != 1.0f) chosen.each([&](float w) { return w * p.routed_scaling; });
  chosen.each([](float w) { return numerics::canonical(w); });
  if (chosen.lane < chosen.count) chosen.weights[chosen.lane] = chosen.own;
}

// The experts lane, lane + 32, ... of a token in a lane's registers: everything about them is in flight at once.
template <int kHeld>
struct HeldExperts {
  float value[kHeld];
  uint32_t key[kHeld];

  static __device__ __forceinline__ int32_t expert(int i, int lane) { return lane + i * kRouteLanes; }

  // Scores, to `scores` as well, and selection keys. Logits fresh from the second cache: another CTA of this launch may
  // have written them.
  __device__ __forceinline__ void begin(const DeviceRouteTokens& p, const float* logits, int lane, float* scores) {
    const auto experts = static_cast<int32_t>(p.num_experts);
    float bias[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int32_t e = expert(i, lane);
      value[i] = e < experts ? __ldcg(logits + e) : kLowestScore;
      bias[i] = p.correction_bias != nullptr && e < experts ? __ldg(p.correction_bias + e) : 0.0f;
    }
    if (p.scoring == Scoring::kSoftmaxBeforeTopK) softmax(experts, lane);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int32_t e = expert(i, lane);
      if (p.scoring == Scoring::kSigmoid) value[i] = numerics::sigmoid(value[i]);
      if (e < experts) scores[e] = value[i];
      const uint32_t own = order_key(p.correction_bias != nullptr ? value[i] + bias[i] : value[i]);
      key[i] = e < experts ? own : kNoKey;
    }
    __syncwarp();  // the scores stand
  }
  // The best of the warp, which is then taken out.
  __device__ __forceinline__ Ranked take(int lane) {
    Ranked best = {kNoKey, 0x7fffffff};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (key[i] > best.key) best = {key[i], expert(i, lane)};  // ascending: a tie stays with the lower expert
    }
    best = warp_first(best);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) key[i] = expert(i, lane) == best.index ? kNoKey : key[i];
    return best;
  }

 private:
  __device__ __forceinline__ void softmax(int32_t experts, int lane) {
    float maximum = kLowestScore;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) maximum = value[i] > maximum ? value[i] : maximum;
    maximum = warp_maximum(maximum);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) value[i] = numerics::exp_f32(value[i] - maximum);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) sum = expert(i, lane) < experts ? sum + value[i] : sum;
    sum = warp_tree_sum(sum);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) value[i] = value[i] / sum;
  }
};

template <bool kKept>
__device__ __forceinline__ Token<kKept> token_of(const DeviceRouteTokens& p, int64_t t, int lane, uint32_t* keys) {
  return {p,
          p.logits + t * p.num_experts,
          lane,
          static_cast<int32_t>(p.num_experts),
          static_cast<int32_t>(p.num_groups),
          static_cast<int32_t>(p.num_experts / p.num_groups),
          keys,
          keys + p.num_experts,
          keys,
          0.0f,
          0.0f};
}

// Token t by one warp, at most 32 * kHeld experts. `memory`: kept_route_words() of the warp. `ids_too`: a second place
// for its ids, or null. kFew: top_k is at most 32.
template <int kHeld, bool kFew = false>
__device__ __forceinline__ void route_held_token(const DeviceRouteTokens& p, int64_t t, int lane, uint32_t* memory,
                                                 int32_t* ids_too) {
  float* const scores = reinterpret_cast<float*>(memory);
  HeldExperts<kHeld> held;
  held.begin(p, p.logits + t * p.num_experts, lane, scores);
  if (p.num_groups > 1) {
    uint32_t* const keys = memory + p.num_experts;
    const auto experts = static_cast<int32_t>(p.num_experts);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (held.expert(i, lane) < experts) keys[held.expert(i, lane)] = held.key[i];
    }
    __syncwarp();  // all keys stand
    token_of<true>(p, t, lane, keys).keep_groups();
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      held.key[i] = held.expert(i, lane) < experts ? keys[held.expert(i, lane)] : kNoKey;
    }
  }
  Chosen<kFew> chosen = {p.weights + t * p.top_k, p.top_k, lane, 0.0f};
  int32_t own = 0;
#pragma unroll 1
  for (int64_t j = 0; j < p.top_k; ++j) {
    const int32_t best = held.take(lane).index;
    if (lane != j % kRouteLanes) continue;
    if (kFew || j < kRouteLanes) {
      own = best;
    } else {
      p.ids[t * p.top_k + j] = best;
      chosen.weights[j] = scores[best];
      if (ids_too != nullptr) ids_too[j] = best;
    }
  }
  if (lane < p.top_k) {
    p.ids[t * p.top_k + lane] = own;
    if (ids_too != nullptr) ids_too[lane] = own;
    chosen.own = scores[own];
  }
  weigh(p, chosen);
}

// The same for any number of experts.
template <bool kKept>
__device__ __forceinline__ void route_token(const DeviceRouteTokens& p, int64_t t, int lane, uint32_t* memory) {
  Token<kKept> token = token_of<kKept>(p, t, lane, kKept ? memory + p.num_experts : memory);
  token.begin();
  token.keep_groups();
  int32_t* ids = p.ids + t * p.top_k;
  Chosen<false> chosen = {p.weights + t * p.top_k, p.top_k, lane, 0.0f};
  int32_t own = 0;
  Ranked last = {kAboveAllKeys, -1};
  for (int64_t j = 0; j < p.top_k; ++j) {
    last = token.next_expert(last);
    if (lane != j % kRouteLanes) continue;
    ids[j] = last.index;
    if (j < kRouteLanes) own = last.index;
    if (j >= kRouteLanes) chosen.weights[j] = token.score(last.index);
  }
  if (lane < p.top_k) chosen.own = token.score(own);
  weigh(p, chosen);
}

}  // namespace quadrille::kernels::cuda
