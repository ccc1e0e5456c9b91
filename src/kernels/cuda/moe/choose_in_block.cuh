// SPDX-License-Identifier: Apache-2.0
// The choice of few tokens by a whole block: an expert a thread, so that the code is short, for it runs once and a line
// of it that has to be fetched costs more than what it computes. Choices and weights of moe::route_tokens. Used by
// norm_and_route.cu.
#pragma once

#include <cstdint>

#include "kernels/cuda/moe/route_token.cuh"

namespace quadrille::kernels::cuda {

inline constexpr int kMostChosen = static_cast<int>(kMostFewRoutes);
inline constexpr int kMostChoosers = 512;  // threads with an expert of a token

struct ChoiceMemory {
  alignas(16) uint32_t key[kMostChoosers];
  float score[kMostChoosers];
  uint32_t best[kMostChoosers / kRouteLanes];
  int32_t id[kMostChosen];
  float chosen[kMostChosen];
};

// A block of `threads` (a multiple of 32) that all call it chooses for tokens [0, num_tokens): ids and their scores go
// to `memory`, [token][top_k], for weigh_choice(). Ends without a barrier.
class BlockChoice {
 public:
  __device__ __forceinline__ BlockChoice(const DeviceRouteTokens& p, int threads, ChoiceMemory& memory)
      : p_(p),
        memory_(memory),
        experts_(static_cast<int>(p.num_experts)),
        warps_((experts_ + kRouteLanes - 1) / kRouteLanes),
        own_(static_cast<int>(threadIdx.x)),
        lane_(own_ % kRouteLanes) {
    // Without divisions, which take some 150 clocks.
    for (int used = warps_; used <= min(threads, kMostChoosers) / kRouteLanes; used += warps_) ++most_;
    const int num_tokens = static_cast<int>(p.num_tokens);
    most_ = min(most_, num_tokens);
    const int warps = most_ * warps_;
    log_parts_ = threads >= 4 * warps * kRouteLanes ? 2 : threads >= 2 * warps * kRouteLanes ? 1 : 0;
  }

  // logit(token * num_experts + expert): asked once for each of them, by the thread that has it.
  template <typename Logit>
  __device__ __forceinline__ void run(const Logit& logit) {
#pragma unroll 1
    for (int first = 0; first < p_.num_tokens; first += most_) {
      if (first > 0) __syncthreads();  // the keys of the tokens before have been read
      const int tokens = min(most_, static_cast<int>(p_.num_tokens) - first);
      make_key(first, place_of(own_ / kRouteLanes, tokens), logit);
      __syncthreads();  // all keys and scores stand
      rank(first, tokens);
    }
  }

 private:
  // The token that a warp has, -1: none, and the first of its experts.
  struct Place {
    int token, first_expert;
  };
  __device__ __forceinline__ Place place_of(int warp, int tokens) const {
    Place place = {0, warp};
#pragma unroll 1
    for (; place.first_expert >= warps_; place.first_expert -= warps_) ++place.token;
    if (place.token >= tokens) place.token = -1;
    place.first_expert *= kRouteLanes;
    return place;
  }

  // Slots of `key` and `score` are those of the threads.
  template <typename Logit>
  __device__ __forceinline__ void make_key(int first, Place place, const Logit& logit) {
    const int expert = place.first_expert + lane_;
    const bool is_there = place.token >= 0 && expert < experts_;
    float value = kLowestScore, bias = 0.0f;
    if (is_there) {
      value = logit((first + place.token) * experts_ + expert);
      if (p_.correction_bias != nullptr) bias = __ldg(p_.correction_bias + expert);
    }
    if (p_.scoring == Scoring::kSoftmaxBeforeTopK) {
      value = softmax(value, place);
    } else if (p_.scoring == Scoring::kSigmoid) {
      value = numerics::sigmoid(value);
    }
    if (place.token < 0) return;
    memory_.score[own_] = value;
    memory_.key[own_] = is_there ? order_key(p_.correction_bias != nullptr ? value + bias : value) : kNoKey;
  }
  __device__ __forceinline__ float softmax(float value, Place place) {
    const uint32_t best = __reduce_max_sync(kWholeWarp, order_key(value));
    if (place.token >= 0 && lane_ == 0) memory_.best[own_ / kRouteLanes] = best;
    __syncthreads();  // the best of each warp stands
    const bool has_token = place.token >= 0;
    const int first_warp = has_token ? own_ / kRouteLanes - place.first_expert / kRouteLanes : 0;
    uint32_t of_token = kLowestKey;
    if (lane_ < warps_) of_token = max(of_token, memory_.best[first_warp + lane_]);
    of_token = __reduce_max_sync(kWholeWarp, of_token);
    const float power = numerics::exp_f32(value - score_of_key(of_token));
    if (has_token) memory_.score[own_] = power;
    __syncthreads();  // all powers stand
    const float* const powers = memory_.score + first_warp * kRouteLanes;
    constexpr int kAtOnce = 4;
    float sum = 0.0f;
#pragma unroll 1
    for (int w = 0; w < warps_; w += kAtOnce) {
      float own[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) own[j] = powers[min(w + j, warps_ - 1) * kRouteLanes + lane_];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) sum = (w + j) * kRouteLanes + lane_ < experts_ ? sum + own[j] : sum;
    }
    sum = warp_tree_sum(sum);
    __syncthreads();  // all powers have been read
    return power / sum;
  }

  // How many come before an expert, counted by up to four threads, is its place.
  __device__ __forceinline__ void rank(int first, int tokens) {
    const int pair = own_ >> log_parts_, part = own_ & ((1 << log_parts_) - 1);
    const Place place = place_of(pair / kRouteLanes, tokens);
    if (place.token < 0) return;  // whole warps
    const int expert = place.first_expert + pair % kRouteLanes;
    const uint32_t key = memory_.key[pair];
    const auto* const keys = reinterpret_cast<const uint4*>(memory_.key + pair - expert);
    const int own_vector = expert / 4, vectors = warps_ * kRouteLanes / 4;
    constexpr int kAtOnce = 4;
    int before = 0;
#pragma unroll 1
    for (int v = part; v < vectors; v += kAtOnce << log_parts_) {
      uint4 k[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int at = v + (j << log_parts_);
        k[j] = at < vectors ? keys[at] : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const uint32_t least = v + (j << log_parts_) < own_vector ? key : key + 1;
        before += (k[j].x >= least) + (k[j].y >= least) + (k[j].z >= least) + (k[j].w >= least);
      }
    }
    // Equal keys of its own vector, of which the upper ones are not counted yet.
    const uint4 near = keys[own_vector];
    const int lower = part == 0 ? expert % 4 : 0;
    before += (lower > 0 && near.x == key) + (lower > 1 && near.y == key) + (lower > 2 && near.z == key);
#pragma unroll 1
    for (int distance = 1; distance >> log_parts_ == 0; distance *= 2) {
      before += __shfl_xor_sync(kWholeWarp, before, distance);
    }
    const int top_k = static_cast<int>(p_.top_k);
    if (part != 0 || before >= top_k || expert >= experts_) return;
    memory_.id[(first + place.token) * top_k + before] = expert;
    memory_.chosen[(first + place.token) * top_k + before] = memory_.score[pair];
  }

  const DeviceRouteTokens& p_;
  ChoiceMemory& memory_;
  int experts_, warps_, own_, lane_;
  int most_ = 0;       // tokens at once
  int log_parts_ = 0;  // of the threads that count for an expert
};

// Behind a barrier, one warp a token: the weights of its choices, and its ids, to where `p` wants them.
__device__ __forceinline__ void weigh_choice(const DeviceRouteTokens& p, int token, int lane,
                                             const ChoiceMemory& memory) {
  const int top_k = static_cast<int>(p.top_k), place = token * top_k + lane;
  Chosen<true> chosen = {p.weights + token * top_k, top_k, lane, 0.0f};
  if (lane < top_k) {
    p.ids[place] = memory.id[place];
    chosen.own = memory.chosen[place];
  }
  weigh(p, chosen);
}

}  // namespace quadrille::kernels::cuda
