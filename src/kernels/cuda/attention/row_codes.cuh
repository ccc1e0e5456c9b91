// SPDX-License-Identifier: Apache-2.0
// The e4m3 codes of a single's row of heads, made by the last of its CTAs: the bytes of quantize_tokens on the bf16 row
// (docs/numerics.md section 2). Called by singles.cuh.
#pragma once

#include "kernels/cuda/attention/arguments.h"
#include "kernels/cuda/decoder/bf16_vector.cuh"
#include "numerics/act_quant.h"

namespace quadrille::kernels::cuda {

// Whether this CTA is the last of `arrivals` to come here; the counter is zero again then, and what the others wrote
// before they came can be read (past the first cache). flag: a word in shared memory. All threads of the CTA.
__device__ __forceinline__ bool is_last_arrival(int32_t* counter, int64_t arrivals, volatile uint32_t* flag) {
  __syncthreads();  // the CTA has written its share
  if (threadIdx.x == 0) {
    __threadfence();
    const bool is_last = atomicAdd(counter, 1) == static_cast<int32_t>(arrivals) - 1;
    if (is_last) *counter = 0;
    __threadfence();
    *flag = is_last ? 1u : 0u;
  }
  __syncthreads();  // the flag stands
  return *flag != 0;
}

// The row becomes codes; `of_warps`: a word a warp.
__device__ __forceinline__ void quantise_row(const AttentionArguments& args, int64_t token, uint32_t* of_warps) {
  constexpr int kHeld = 8;  // vectors of a thread that are read once
  const int64_t width = args.p.num_heads * args.p.pages.head_dim;
  const int64_t vectors = width / kVectorColumns;
  const int64_t stride = blockDim.x;
  const uint4* row = reinterpret_cast<const uint4*>(args.p.out + token * width);
  const auto load = [&](int64_t i) { return i < vectors ? __ldcg(row + i) : make_uint4(0, 0, 0, 0); };
  uint4 held[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) held[h] = load(threadIdx.x + h * stride);
  float absmax = 0.0f;
  const auto note = [&](const uint4& v) {
    float x[kVectorColumns];
    unpack(v, x);
#pragma unroll
    for (int j = 0; j < kVectorColumns; ++j) absmax = numerics::absmax_step(absmax, x[j]);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) note(held[h]);
  for (int64_t i = threadIdx.x + kHeld * stride; i < vectors; i += stride) note(load(i));
  // Magnitudes without NaN order like their bits.
  const uint32_t of_warp = __reduce_max_sync(0xffffffffu, numerics::bits_of(absmax));
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = of_warp;
  __syncthreads();  // the maxima of all warps stand
  uint32_t top = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) top = max(top, of_warps[w]);
  const float scale = numerics::act_scale_of_absmax(numerics::float_of(top));
  if (threadIdx.x == 0) args.p.act_scale[token] = scale;
  const Divisor divisor = divisor_of(scale);
  uint2* codes = reinterpret_cast<uint2*>(args.p.act + token * args.p.act_pitch);
  const auto store = [&](int64_t i, const uint4& v) {
    float x[kVectorColumns];
    unpack(v, x);
    codes[i] = e4m3_codes(x, divisor);
  };
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    if (threadIdx.x + h * stride < vectors) store(threadIdx.x + h * stride, held[h]);
  }
  for (int64_t i = threadIdx.x + kHeld * stride; i < vectors; i += stride) store(i, load(i));
  const int64_t pitch_vectors = args.p.act_pitch / kVectorColumns;
  for (int64_t i = vectors + threadIdx.x; i < pitch_vectors; i += stride) codes[i] = make_uint2(0, 0);
}

}  // namespace quadrille::kernels::cuda
