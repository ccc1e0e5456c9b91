// SPDX-License-Identifier: Apache-2.0
// Tokens that travel to the ranks of their experts, and rows that come back: copies of 16 bytes, from the memory of the
// rank that has them.
#include "core/check.h"
#include "kernels/api/device_problems.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ranks/expert_logic.h"
#include "kernels/cuda/ranks/peer_kernels.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;  // of a grid; loops take the rest

__device__ __forceinline__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t index_stride() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

// Word 0 of what stands behind the codes is the scale, words 1.. are the ids.
__global__ void __launch_bounds__(kThreads) pack_kernel(PackTokens p, int64_t pitch) {
  const int64_t words = 1 + p.top_k;
  for (int64_t i = first_index(); i < p.num_tokens * words; i += index_stride()) {
    const int64_t token = i / words;
    const int64_t word = i % words;
    auto* to = reinterpret_cast<uint32_t*>(p.records + token * pitch + p.act_bytes) + word;
    *to = word == 0 ? __float_as_uint(p.act_scale[token]) : static_cast<uint32_t>(p.ids[token * p.top_k + word - 1]);
  }
}

__global__ void __launch_bounds__(kThreads) local_kernel(const __grid_constant__ LocalRoutes p, int64_t num_routes) {
  const int64_t top_k = p.tokens.top_k;
  for (int64_t i = first_index(); i < num_routes; i += index_stride()) {
    const TokenPlace place = token_place(p.tokens, i / top_k);
    const auto* words = reinterpret_cast<const int32_t*>(record_of(p.tokens, place) + p.tokens.act_bytes);
    const LocalRoute route = local_route(p, place.rank, words[1 + i % top_k]);
    if (route.bad && p.status != nullptr) atomicOr(p.status, kStatusBadExpertId);
    p.ids[i] = route.expert;
  }
}

// A block a token. The codes are read once, for all routes.
__global__ void __launch_bounds__(kThreads) place_kernel(const __grid_constant__ PlaceTokens p, int64_t num_tokens) {
  const int64_t top_k = p.tokens.top_k;
  const int64_t vectors = p.tokens.act_bytes / static_cast<int64_t>(sizeof(uint4));
  for (int64_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    const int32_t* slots = p.slot_of_route + token * top_k;
    bool here = false;
    for (int64_t j = 0; j < top_k; ++j) here = here || __ldg(slots + j) >= 0;
    if (!here) continue;
    const uint8_t* record = record_of(p.tokens, token_place(p.tokens, token));
    const auto* codes = reinterpret_cast<const uint4*>(record);
    for (int64_t i = threadIdx.x; i < vectors; i += kThreads) {
      const uint4 vector = codes[i];
      for (int64_t j = 0; j < top_k; ++j) {
        const int32_t slot = __ldg(slots + j);
        if (slot >= 0) reinterpret_cast<uint4*>(p.act + slot * p.tokens.act_bytes)[i] = vector;
      }
    }
    const float scale = *reinterpret_cast<const float*>(record + p.tokens.act_bytes);
    for (int64_t j = threadIdx.x; j < top_k; j += kThreads) {
      const int32_t slot = __ldg(slots + j);
      if (slot >= 0) p.act_scale[slot] = scale;
    }
  }
}

__global__ void __launch_bounds__(kThreads) return_kernel(ReturnRows p) {
  const int64_t vectors = p.row_bytes / static_cast<int64_t>(sizeof(uint4));
  for (int64_t route = blockIdx.x; route < p.num_routes; route += gridDim.x) {
    const int32_t slot = __ldg(p.slot_of_route + route);
    if (slot < 0) continue;
    const auto* from = static_cast<const uint4*>(p.rows) + slot * vectors;
    auto* to = static_cast<uint4*>(p.out) + route * vectors;
    for (int64_t i = threadIdx.x; i < vectors; i += kThreads) to[i] = from[i];
  }
}

unsigned blocks_for(int64_t count) {
  return static_cast<unsigned>(count < kMostBlocks ? count : kMostBlocks);
}
unsigned blocks_of_threads(int64_t count) {
  return blocks_for((count + kThreads - 1) / kThreads);
}

void check_tokens(const RankTokens& p) {
  QD_CHECK(p.num_ranks >= 1 && p.num_ranks <= kMaxExpertRanks, "ranks of a layer");
  QD_CHECK(p.top_k >= 1 && p.act_bytes >= 16 && p.act_bytes % 128 == 0, "shapes of a token's record");
}

}  // namespace

void pack_tokens(const PackTokens& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.top_k >= 1 && p.act_bytes % 128 == 0, "shapes of a token's record");
  if (p.num_tokens == 0) return;
  const unsigned blocks = blocks_of_threads(p.num_tokens * (1 + p.top_k));
  pack_kernel<<<blocks, kThreads, 0, native(stream)>>>(p, token_record_pitch(p.act_bytes, p.top_k));
  check_launch("pack_tokens");
}

void local_routes(const LocalRoutes& p, device::Stream stream) {
  check_tokens(p.tokens);
  const int64_t routes = p.tokens.first[p.tokens.num_ranks] * p.tokens.top_k;
  if (routes == 0) return;
  local_kernel<<<blocks_of_threads(routes), kThreads, 0, native(stream)>>>(p, routes);
  check_launch("local_routes");
}

void place_tokens(const PlaceTokens& p, device::Stream stream) {
  check_tokens(p.tokens);
  const int64_t tokens = p.tokens.first[p.tokens.num_ranks];
  if (tokens == 0) return;
  place_kernel<<<blocks_for(tokens), kThreads, 0, native(stream)>>>(p, tokens);
  check_launch("place_tokens");
}

void return_rows(const ReturnRows& p, device::Stream stream) {
  QD_CHECK(p.row_bytes >= 16 && p.row_bytes % 16 == 0, "rows of 16 bytes");
  if (p.num_routes == 0) return;
  return_kernel<<<blocks_for(p.num_routes), kThreads, 0, native(stream)>>>(p);
  check_launch("return_rows");
}

std::vector<const void*> expert_rows_kernels() {
  return {reinterpret_cast<const void*>(pack_kernel), reinterpret_cast<const void*>(local_kernel),
          reinterpret_cast<const void*>(place_kernel), reinterpret_cast<const void*>(return_kernel)};
}

}  // namespace quadrille::kernels::cuda
