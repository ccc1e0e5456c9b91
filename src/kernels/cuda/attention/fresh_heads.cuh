// SPDX-License-Identifier: Apache-2.0
// The heads of a fused projection that an attention kernel makes for itself, a warp a head: norm, rotary embedding, the
// bits of split_heads and so of numerics/elementwise.h. Lane l has dimensions l, l + 32, ..., which are its chain of
// the sum of squares, and from 64 dimensions on both values of a rotary pair. Called by cluster_singles.cuh.
#pragma once

#include "kernels/api/device_decoder_problems.h"
#include "kernels/cuda/moe/warp.cuh"
#include "numerics/elementwise.h"

namespace quadrille::kernels::cuda {

// One head of one token: what is older than the projection is read by load_tables(), the rest happens in make().
template <int Dim>
class FreshHead {
 public:
  static constexpr int kHeld = Dim / 32;  // dimensions of a lane

  // norm: weights [Dim], null: none. `rotates`: by the angles of `position`.
  __device__ __forceinline__ void load_tables(const DeviceQkv& p, const uint16_t* norm, bool rotates,
                                              int64_t position) {
    lane_ = static_cast<int>(threadIdx.x) % 32;
    eps_ = p.eps;
    has_norm_ = norm != nullptr;
    rotates_ = rotates && p.rotary_dim > 0;
#pragma unroll
    for (int m = 0; m < kHeld; ++m) weight_[m] = has_norm_ ? __ldg(norm + lane_ + 32 * m) : uint16_t{0};
#pragma unroll
    for (int a = 0; a < kAngles; ++a) {
      const int64_t at = position * (Dim / 2) + lane_ % (Dim / 2) + 32 * a;
      cos_[a] = rotates_ ? __ldg(p.cos + at) : 1.0f;
      sin_[a] = rotates_ ? __ldg(p.sin + at) : 0.0f;
    }
  }

  // The head in `x` becomes bf16 values of dimensions lane + 32 m. All lanes of the warp.
  __device__ __forceinline__ void make(const uint16_t* x, uint16_t (&made)[kHeld]) const {
    float v[kHeld];
#pragma unroll
    for (int m = 0; m < kHeld; ++m) v[m] = numerics::bf16_to_f32(x[lane_ + 32 * m]);
    if (has_norm_) {
      float sum = 0.0f;
#pragma unroll
      for (int m = 0; m < kHeld; ++m) sum = __builtin_fmaf(v[m], v[m], sum);
      const float scale = numerics::rms_scale(warp_tree_sum(sum), Dim, eps_);
#pragma unroll
      for (int m = 0; m < kHeld; ++m)
        v[m] = numerics::rms_norm_value(v[m], scale, numerics::bf16_to_f32(weight_[m]), true);
    }
    if (rotates_) rotate(v);
#pragma unroll
    for (int m = 0; m < kHeld; ++m) made[m] = numerics::bf16_from_f32(v[m]);
  }

 private:
  static constexpr int kAngles = Dim == 128 ? 2 : 1;

  __device__ __forceinline__ void rotate(float (&v)[kHeld]) const {
    if constexpr (Dim == 32) {
      const float other = __shfl_xor_sync(kWholeWarp, v[0], 16);
      v[0] = lane_ < 16 ? numerics::rope_first(v[0], other, cos_[0], sin_[0], true)
                        : numerics::rope_second(other, v[0], cos_[0], sin_[0], true);
    } else {
#pragma unroll
      for (int a = 0; a < kAngles; ++a) {
        const float first = v[a], second = v[a + kAngles];
        v[a] = numerics::rope_first(first, second, cos_[a], sin_[a], true);
        v[a + kAngles] = numerics::rope_second(first, second, cos_[a], sin_[a], true);
      }
    }
  }

  int lane_;
  bool has_norm_, rotates_;
  float eps_;
  uint16_t weight_[kHeld];
  float cos_[kAngles], sin_[kAngles];
};

}  // namespace quadrille::kernels::cuda
