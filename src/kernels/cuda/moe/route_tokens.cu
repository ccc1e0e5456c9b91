// SPDX-License-Identifier: Apache-2.0
// moe::route_tokens with one warp a token (route_token.cuh), where it is a launch of its own.
#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/moe/route_token.cuh"
#include "kernels/cuda/ptx/chain.cuh"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kMostWarps = 4;
constexpr int64_t kMostSharedWords = 12288;  // 48 KiB, what every launch may ask for

// kHeld: experts of a lane in registers; 0: more than there is room for, kKept: in shared memory.
template <bool kKept, int kHeld>
__global__ void __launch_bounds__(kMostWarps* kRouteLanes)
    route_kernel(const __grid_constant__ DeviceRouteTokens p, int words_a_warp) {
  extern __shared__ uint32_t route_memory[];
  const int lane = static_cast<int>(threadIdx.x) % kRouteLanes;
  const int warp = static_cast<int>(threadIdx.x) / kRouteLanes;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kRouteLanes) + warp;
  ptx::wait_for_predecessor();
  ptx::let_successor_start();
  if (t >= p.num_tokens) return;  // whole warps leave, and no barrier of the block follows
  uint32_t* const memory = route_memory + warp * words_a_warp;
  if constexpr (kHeld != 0) {
    route_held_token<kHeld>(p, t, lane, memory, nullptr);
  } else {
    route_token<kKept>(p, t, lane, memory);
  }
}

}  // namespace

void route_tokens(const DeviceRouteTokens& p, device::Stream stream) {
  QD_CHECK(p.num_tokens >= 0 && p.num_experts >= 1 && p.num_experts <= INT32_MAX, "shapes of the router");
  QD_CHECK(p.num_groups >= 1 && p.num_experts % p.num_groups == 0 && p.groups_kept >= 1 &&
               p.groups_kept <= p.num_groups && p.top_k >= 1 && p.top_k <= p.num_experts / p.num_groups * p.groups_kept,
           "a rule that check_router_rule lets pass");
  if (p.num_tokens == 0) return;
  const int64_t kept_words = kept_route_words(p.num_experts, p.num_groups);
  const bool kept = kept_words <= kMostSharedWords;
  const int64_t words = kept ? kept_words : ((p.num_groups > 1 ? p.num_groups : 0) + 31) / 32;
  int warps = p.num_tokens < kMostWarps ? static_cast<int>(p.num_tokens) : kMostWarps;
  while (warps > 1 && warps * words > kMostSharedWords) --warps;
  const auto grid = static_cast<unsigned>((p.num_tokens + warps - 1) / warps);
  const size_t bytes = static_cast<size_t>(warps * words) * sizeof(uint32_t);
  QD_CHECK(words <= kMostSharedWords, "groups that fit into shared memory as bits");
  constexpr int kFew = 4, kMany = 16;
  auto* kernel = !kept                                           ? route_kernel<false, 0>
                 : p.num_experts <= int64_t{kFew} * kRouteLanes  ? route_kernel<true, kFew>
                 : p.num_experts <= int64_t{kMany} * kRouteLanes ? route_kernel<true, kMany>
                                                                 : route_kernel<true, 0>;
  launch_chained(kernel, grid, warps * kRouteLanes, bytes, native(stream), p, static_cast<int>(words));
  check_launch("route_tokens");
}

}  // namespace quadrille::kernels::cuda
