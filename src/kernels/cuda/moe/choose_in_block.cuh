// SPDX-License-Identifier: Apache-2.0
// The choice of few tokens by a whole block: an expert a thread, so that the code is short, for it runs once and a line
// of it that has to be fetched costs more than what it computes. Choices and weights of moe::route_tokens. Used by
// norm_and_route.cu and by the grouped products.
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
        threads_(threads),
        own_(static_cast<int>(threadIdx.x)) {}

  __device__ __forceinline__ void run() {
    const int padded = warps_ * kRouteLanes, most = min(threads_, kMostChoosers) / padded;
    for (int first = 0; first < p_.num_tokens; first += most) {
      if (first > 0) __syncthreads();  // the keys of the tokens before have been read
      const int tokens = min(most, static_cast<int>(p_.num_tokens) - first);
      const int token = own_ / padded, expert = own_ % padded;
      const bool is_there = token < tokens && expert < experts_;
      make_key(token < tokens ? token : -1, first + token, expert, is_there);
      __syncthreads();  // all keys and scores stand
      rank(tokens, first, padded);
    }
  }

 private:
  // Slots of `key` and `score` are those of the threads.
  __device__ __forceinline__ void make_key(int token, int row, int expert, bool is_there) {
    const int lane = own_ % kRouteLanes;
    float value = kLowestScore, bias = 0.0f;
    if (is_there) {
      value = __ldcg(p_.logits + int64_t{row} * experts_ + expert);
      if (p_.correction_bias != nullptr) bias = __ldg(p_.correction_bias + expert);
    }
    if (p_.scoring == Scoring::kSoftmaxBeforeTopK) {
      const uint32_t best = __reduce_max_sync(kWholeWarp, order_key(value));
      if (token >= 0 && lane == 0) memory_.best[own_ / kRouteLanes] = best;
      __syncthreads();  // the best of each warp stands
      uint32_t of_token = kLowestKey;
      for (int w = 0; token >= 0 && w < warps_; ++w) of_token = max(of_token, memory_.best[token * warps_ + w]);
      value = numerics::exp_f32(value - score_of_key(of_token));
      if (token >= 0) memory_.score[own_] = value;
      __syncthreads();  // all powers stand
      float sum = 0.0f;
      for (int e = lane; token >= 0 && e < experts_; e += kRouteLanes) {
        sum = sum + memory_.score[token * warps_ * kRouteLanes + e];
      }
      value = value / warp_tree_sum(sum);
      __syncthreads();  // all powers have been read
    } else if (p_.scoring == Scoring::kSigmoid) {
      value = numerics::sigmoid(value);
    }
    if (token < 0) return;
    memory_.score[own_] = value;
    memory_.key[own_] = is_there ? order_key(p_.correction_bias != nullptr ? value + bias : value) : kNoKey;
  }

  // How many come before an expert, counted by up to four threads, is its place.
  __device__ __forceinline__ void rank(int tokens, int first, int padded) {
    const int pairs = tokens * padded;
    const int parts = threads_ >= 4 * pairs ? 4 : threads_ >= 2 * pairs ? 2 : 1;
    const int pair = own_ / parts, part = own_ % parts;
    if (pair >= pairs) return;  // whole warps
    const int token = pair / padded, expert = pair % padded;
    const uint32_t key = memory_.key[pair];
    const auto* keys = reinterpret_cast<const uint4*>(memory_.key + token * padded);
    const int own_vector = expert / 4;
    int before = 0;
#pragma unroll 4
    for (int v = part; v < padded / 4; v += parts) {
      const uint4 k = keys[v];
      const uint32_t least = key + (v < own_vector ? 0 : 1);
      before += (k.x >= least) + (k.y >= least) + (k.z >= least) + (k.w >= least);
    }
    for (int e = own_vector * 4; part == 0 && e < expert; ++e) before += memory_.key[token * padded + e] == key;
    for (int distance = 1; distance < parts; distance *= 2) before += __shfl_xor_sync(kWholeWarp, before, distance);
    if (part != 0 || before >= p_.top_k || expert >= experts_) return;
    const int place = (first + token) * static_cast<int>(p_.top_k) + before;
    memory_.id[place] = expert;
    memory_.chosen[place] = memory_.score[pair];
  }

  const DeviceRouteTokens& p_;
  ChoiceMemory& memory_;
  int experts_, warps_, threads_, own_;
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
