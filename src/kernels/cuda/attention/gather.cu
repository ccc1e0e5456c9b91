// SPDX-License-Identifier: Apache-2.0
// The folds of singles whose blocks were spread over CTAs: a block a (single, query head), the same chain as if one CTA
// had had all blocks. The factors of 128 folds are found side by side (a running maximum has one value however it is
// found); the sums are a chain.
#include "kernels/cuda/attention/block.cuh"
#include "kernels/cuda/attention/gather.h"
#include "kernels/cuda/launch.h"

namespace quadrille::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostDims = layout::kMostTileDim / kThreads;  // of a thread

struct FoldFactors {
  float keep[kThreads];
  float take[kThreads];
  float norm[kThreads];
  float top[kThreads];
};

// The factors of blocks [0, count) at `partials`; `top` before them, the one behind them comes back.
__device__ __forceinline__ float find_factors(const float* partials, int64_t pitch, int64_t padded, int count,
                                              float top, FoldFactors& f) {
  const int i = static_cast<int>(threadIdx.x);
  const float own = i < count ? partials[i * pitch + padded] : 0.0f;
  __syncthreads();  // pairs with the one below: the factors before have been used
  if (i < count) f.top[i] = own;
  __syncthreads();  // all maxima stand
  float before = top;
  for (int j = 0; j < i && j < count; ++j) before = fmaxf(before, f.top[j]);
  float last = fmaxf(before, own);
  if (i < count) {
    const Fold fold = fold_factors(before, own, last);
    f.keep[i] = fold.keep;
    f.take[i] = fold.take;
    f.norm[i] = partials[i * pitch + padded + 1];
  }
  for (int j = 0; j < count; ++j) top = fmaxf(top, f.top[j]);
  __syncthreads();  // all factors stand
  return top;
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const __grid_constant__ AttentionArguments args) {
  __shared__ FoldFactors factors;
  const int64_t single = blockIdx.x / args.p.num_heads;
  const int64_t head = blockIdx.x % args.p.num_heads;
  const int64_t token = args.p.singles == nullptr ? single : args.p.singles[single];
  const BlockRange blocks = seen_blocks(seen_keys(args.p.position[token], args.p.window));
  if (blocks.count > args.most_blocks) return;
  if (blocks_of_part(blocks.count, args.parts, args.least) >= blocks.count) return;
  const int64_t head_dim = args.p.pages.head_dim;
  const int64_t padded = layout::padded_head_dim(head_dim);
  const int64_t pitch = partial_pitch(padded);
  const float* partials = args.p.workspace + (single * args.p.num_heads + head) * args.most_blocks * pitch;
  float top = -__builtin_inff();
  float norm = 0.0f;
  float sum[kMostDims] = {};
  for (int64_t first = 0; first < blocks.count; first += kThreads) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kThreads), blocks.count - first));
    const float* chunk = partials + first * pitch;
    top = find_factors(chunk, pitch, padded, count, top, factors);
#pragma unroll 8
    for (int j = 0; j < count; ++j) {
      const Fold fold{factors.keep[j], factors.take[j]};
      norm = folded(norm, fold, factors.norm[j]);
#pragma unroll
      for (int d = 0; d < kMostDims; ++d) {
        const int64_t dim = d * kThreads + threadIdx.x;
        if (dim < padded) sum[d] = folded(sum[d], fold, chunk[j * pitch + dim]);
      }
    }
  }
#pragma unroll
  for (int d = 0; d < kMostDims; ++d) {
    const int64_t dim = d * kThreads + threadIdx.x;
    if (dim >= head_dim) continue;
    args.p.out[(token * args.p.num_heads + head) * head_dim + dim] =
        static_cast<uint16_t>(ptx::bf16_pair(sum[d] / norm, 0.0f));
  }
}

}  // namespace

void launch_gather(const AttentionArguments& args, device::Stream stream) {
  gather_kernel<<<static_cast<unsigned>(args.p.num_singles * args.p.num_heads), kThreads, 0, native(stream)>>>(args);
  check_launch("attention, gather");
}

}  // namespace quadrille::kernels::cuda
