// SPDX-License-Identifier: Apache-2.0
// moe::route_tokens for one token by one warp: lanes stride over the experts. Where they fit, scores and selection keys
// lie in shared memory, and those of up to 16 experts a lane in registers while the choice is made; else they are
// computed again whenever they are looked at, and the next best is a ranking's next. Used by route_tokens.cu and
// route_and_plan.cu.
#pragma once

#include <cstdint>

#include "kernels/api/device_problems.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/exp.h"
#include "numerics/silu.h"

namespace quadrille::kernels::cuda {

inline constexpr int kRouteLanes = 32;
inline constexpr float kLowestScore = -__builtin_inff();

// Words of shared memory a warp. Kept: logits [experts], keys [experts], group keys [groups]; else: bits [groups / 32].
constexpr int64_t kept_route_words(int64_t num_experts, int64_t num_groups) {
  return 2 * num_experts + (num_groups > 1 ? num_groups : 0);
}

// One token. kHeld: experts a lane whose keys are in registers while the choice is made (0: none); with kKept alone.
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

  // Fresh from the second cache: another CTA of this launch may have written them.
  __device__ void begin() {
    if constexpr (kKept) {
      float* kept = reinterpret_cast<float*>(keys) - experts;
#pragma unroll 4
      for (int32_t e = lane; e < experts; e += kRouteLanes) kept[e] = __ldcg(logits + e);
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
// rarely above 8) where they are stored in the end.
struct Chosen {
  float* weights;
  int64_t count;
  int lane;
  float own;

  template <typename Step>
  __device__ void each(const Step& step) {
    if (lane < count) own = step(own);
    for (int64_t j = lane + kRouteLanes; j < count; j += kRouteLanes) weights[j] = step(weights[j]);
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

__device__ __forceinline__ void weigh(const DeviceRouteTokens& p, Chosen chosen) {
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

// The keys of a lane's experts lane, lane + 32, ... in registers.
template <int kHeld>
struct HeldKeys {
  uint32_t key[kHeld];

  __device__ __forceinline__ void load(const uint32_t* keys, int32_t experts, int lane) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) key[i] = lane + i * kRouteLanes < experts ? keys[lane + i * kRouteLanes] : kNoKey;
  }
  // The best of the warp, which is then taken out.
  __device__ __forceinline__ Ranked take(int lane) {
    Ranked best = {kNoKey, 0x7fffffff};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (key[i] > best.key) best = {key[i], lane + i * kRouteLanes};  // ascending: a tie stays with the lower expert
    }
    best = warp_first(best);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) key[i] = lane + i * kRouteLanes == best.index ? kNoKey : key[i];
    return best;
  }
};
// The ranking's next by looking at all experts again.
template <>
struct HeldKeys<0> {};

// Token t by one warp. `logits`: its row. `memory`: the warp's words. `ids_too`: a second place for its ids, or null.
template <bool kKept, int kHeld>
__device__ __forceinline__ void route_token(const DeviceRouteTokens& p, int64_t t, int lane, uint32_t* memory,
                                            int32_t* ids_too) {
  static_assert(kKept || kHeld == 0, "keys in registers come from shared memory");
  uint32_t* const keys = kKept ? memory + p.num_experts : memory;
  Token<kKept> token = {p,
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
  token.begin();
  token.keep_groups();
  int32_t* ids = p.ids + t * p.top_k;
  Chosen chosen = {p.weights + t * p.top_k, p.top_k, lane, 0.0f};
  int32_t own = 0;
  Ranked last = {kAboveAllKeys, -1};
  HeldKeys<kHeld> held;
  if constexpr (kHeld != 0) held.load(keys, token.experts, lane);
  for (int64_t j = 0; j < p.top_k; ++j) {
    if constexpr (kHeld != 0) {
      last = held.take(lane);
    } else {
      last = token.next_expert(last);
    }
    if (lane != j % kRouteLanes) continue;
    ids[j] = last.index;
    if (ids_too != nullptr) ids_too[j] = last.index;
    if (j < kRouteLanes) own = last.index;
    if (j >= kRouteLanes) chosen.weights[j] = token.score(last.index);
  }
  if (lane < p.top_k) chosen.own = token.score(own);
  weigh(p, chosen);
  __syncwarp();  // nobody writes the next token's words while these are read
}

}  // namespace quadrille::kernels::cuda
