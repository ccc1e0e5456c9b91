// SPDX-License-Identifier: Apache-2.0
// moe::route_tokens with one warp a token: lanes stride over the experts, the next best is a ranking's next, so nothing
// is marked as taken. Selection keys lie in shared memory; where the experts of one token do not fit, they are computed
// again whenever they are looked at.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/exp.h"
#include "numerics/silu.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kMostWarps = 4;
constexpr int64_t kMostSharedWords = 12288;  // 48 KiB, what every launch may ask for
constexpr float kLowest = -__builtin_inff();

// One token. Words of shared memory a warp: kept keys: keys [experts], group_keys [groups]; else: bits [groups / 32].
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
    return order_key(p.correction_bias != nullptr ? value + p.correction_bias[e] : value);
  }
  __device__ uint32_t key(int32_t e) const {
    if constexpr (kKept) return keys[e];
    if (groups > 1 && (group_bits[e / group_size / 32] >> (e / group_size % 32) & 1u) == 0) return kNoKey;
    return computed_key(e);
  }

  __device__ void begin() {
    if (p.scoring == Scoring::kSoftmaxBeforeTopK) {
      maximum = kLowest;
      for (int32_t e = lane; e < experts; e += kLanes) maximum = logits[e] > maximum ? logits[e] : maximum;
      maximum = warp_maximum(maximum);
      sum = 0.0f;
      for (int32_t e = lane; e < experts; e += kLanes) sum = sum + numerics::exp_f32(logits[e] - maximum);
      sum = warp_tree_sum(sum);
    }
    if constexpr (kKept) {
      for (int32_t e = lane; e < experts; e += kLanes) keys[e] = computed_key(e);
      __syncwarp();  // all keys stand
    }
  }

  // The key of a group's score; all lanes call it with the same group.
  __device__ uint32_t computed_group_key(int32_t group) const {
    uint32_t first = kLowestKey, second = kLowestKey;
    for (int32_t i = lane; i < group_size; i += kLanes) {
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
    for (int32_t g = kKept ? lane : 0; g < groups; g += kKept ? kLanes : 1) {
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
      for (int32_t e = lane; e < experts; e += kLanes) {
        if (comes_after({group_keys[e / group_size], e / group_size}, last)) keys[e] = kNoKey;
      }
    } else {
      for (int32_t word = lane; word < (groups + 31) / 32; word += kLanes) group_bits[word] = 0;
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
    for (int32_t e = lane; e < experts; e += kLanes) {
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
    for (int64_t j = lane + kLanes; j < count; j += kLanes) weights[j] = step(weights[j]);
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
    float maximum = kLowest;
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

template <bool kKept>
__global__ void __launch_bounds__(kMostWarps* kLanes)
    route_kernel(const __grid_constant__ DeviceRouteTokens p, int words_a_warp) {
  extern __shared__ uint32_t route_memory[];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kLanes) + warp;
  if (t >= p.num_tokens) return;  // whole warps leave, and no barrier of the block follows
  uint32_t* memory = route_memory + warp * words_a_warp;
  Token<kKept> token = {p,
                        p.logits + t * p.num_experts,
                        lane,
                        static_cast<int32_t>(p.num_experts),
                        static_cast<int32_t>(p.num_groups),
                        static_cast<int32_t>(p.num_experts / p.num_groups),
                        memory,
                        memory + p.num_experts,
                        memory,
                        0.0f,
                        0.0f};
  token.begin();
  token.keep_groups();

  int32_t* ids = p.ids + t * p.top_k;
  Chosen chosen = {p.weights + t * p.top_k, p.top_k, lane, 0.0f};
  int32_t own = 0;
  Ranked last = {kAboveAllKeys, -1};
  for (int64_t j = 0; j < p.top_k; ++j) {
    last = token.next_expert(last);
    if (lane != j % kLanes) continue;
    ids[j] = last.index;
    if (j < kLanes) own = last.index;
    if (j >= kLanes) chosen.weights[j] = token.score(last.index);
  }
  if (lane < p.top_k) chosen.own = token.score(own);
  weigh(p, chosen);
}

}  // namespace

void route_tokens(const DeviceRouteTokens& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.num_experts >= 1 && p.num_experts <= INT32_MAX, "shapes of the router");
  QD_CHECK(p.num_groups >= 1 && p.num_experts % p.num_groups == 0 && p.groups_kept >= 1 &&
               p.groups_kept <= p.num_groups && p.top_k >= 1 && p.top_k <= p.num_experts / p.num_groups * p.groups_kept,
           "a rule that check_router_rule lets pass");
  if (p.num_tokens == 0) return;
  const int64_t group_words = p.num_groups > 1 ? p.num_groups : 0;
  const int64_t kept_words = p.num_experts + group_words;
  const bool kept = kept_words <= kMostSharedWords;
  const int64_t words = kept ? kept_words : (group_words + 31) / 32;
  int warps = p.num_tokens < kMostWarps ? static_cast<int>(p.num_tokens) : kMostWarps;
  while (warps > 1 && warps * words > kMostSharedWords) --warps;
  const auto grid = static_cast<unsigned>((p.num_tokens + warps - 1) / warps);
  const size_t bytes = static_cast<size_t>(warps * words) * sizeof(uint32_t);
  QD_CHECK(words <= kMostSharedWords, "groups that fit into shared memory as bits");
  (kept ? route_kernel<true> : route_kernel<false>)<<<grid, warps * kLanes, bytes, native(stream)>>>(
      p, static_cast<int>(words));
  check_launch("route_tokens");
}

}  // namespace quadrille::kernels::cuda
