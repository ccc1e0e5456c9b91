// SPDX-License-Identifier: Apache-2.0
// From the accumulators of the wide tile to memory, one half of the tokens at a time through fp32 rows in shared
// memory: scaling, activation and rounding are short run-time loops. Divisions without a branch, so that several run at
// a time.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/w4a8_gemm/wide_plan.h"
#include "kernels/cuda/w4a8_gemm/work.cuh"
#include "numerics/activation.h"

namespace quadrille::kernels::cuda {

// x / d as IEEE rounds it where `safe`: |x| within 2^-60..2^60 and 1 <= d <= 2^100, so no step leaves the normal
// numbers; the steps of the compiler's own division, without its branch, so that several run interleaved.
struct Quotient {
  float value;
  bool safe;
};
__device__ __forceinline__ Quotient divide(float x, float d) {
  float r;
  asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(d));
  r = __fmaf_rn(r, __fmaf_rn(r, -d, 1.0f), r);
  float q = x * r;
  q = __fmaf_rn(r, __fmaf_rn(q, -d, x), q);
  q = __fmaf_rn(r, __fmaf_rn(q, -d, x), q);
  const float size = fabsf(x);
  return {q, size >= 0x1p-60f && size <= 0x1p60f && d <= 0x1p100f};
}

// `Count` activations of silu: bits of numerics::activation_f32 (a NaN may keep its payload).
template <int Count>
__device__ __forceinline__ void activate_silu(const numerics::ActivationRule& rule, float (&gate)[Count],
                                              const float (&up)[Count]) {
  float fast[Count];
  bool safe = true;
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const Quotient q = divide(gate[i], 1.0f + numerics::exp_f32(-gate[i]));
    fast[i] = q.value * up[i];
    safe = safe && q.safe;
  }
  if (!safe) {
#pragma unroll
    for (int i = 0; i < Count; ++i) fast[i] = numerics::activation_f32(rule, gate[i], up[i]);
  }
#pragma unroll
  for (int i = 0; i < Count; ++i) gate[i] = fast[i];
}

class WideEpilogue {
 public:
  using Plan = WidePlan;
  static constexpr int kValues = Plan::kHalf / 2;

  __device__ __forceinline__ WideEpilogue(const GemmArguments& args, uint8_t* shared, int warpgroup, int thread)
      : args_(args), shared_(shared), warpgroup_(warpgroup), thread_(thread) {}

  // The factors sa * 512 of the item's rows, on their way while the first records are converted.
  struct Factors {
    float value[2];
  };
  __device__ __forceinline__ Factors fetch_factors(int32_t first_row, int32_t num_rows) const {
    Factors f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = thread_ + i * 128;
      f.value[i] = token < num_rows ? args_.act_scale[static_cast<int64_t>(first_row) + token] * 512.0f : 512.0f;
    }
    return f;
  }
  // Read behind the first barrier of store(). The factors of the other item may still be read.
  __device__ __forceinline__ void keep_factors(const Factors& f, int item) {
    factors(item)[thread_] = f.value[0];
    if (thread_ < Plan::kTokens - 128) factors(item)[thread_ + 128] = f.value[1];
  }

  __device__ __forceinline__ void store(const WorkItem& w, int item, const float (&total)[Plan::kTokens / 2]) {
    const int first_n = (w.row_tile * Plan::kWarpgroups + warpgroup_) * layout::kRecordRows;
#pragma unroll 1
    for (int first_token = 0; first_token < w.num_rows; first_token += Plan::kHalf) {
      sync();  // the factors are there; the rows of the half before have been read
      if (first_token == 0) {
        stage<0>(total);
      } else {
        stage<kValues>(total);
      }
      sync();
      if (args_.output == GemmOutput::kActivated) {
        store_activated(w, factors(item), first_n, first_token);
      } else {
        store_rows(w, factors(item), first_n, first_token);
      }
    }
  }

  // All threads of the warpgroup.
  __device__ __forceinline__ void sync() {
    if (warpgroup_ == 0) {
      ptx::named_barrier<1, 128>();
    } else {
      ptx::named_barrier<2, 128>();
    }
  }

 private:
  __device__ __forceinline__ float* staging() const {
    return reinterpret_cast<float*>(shared_ + Plan::kStagingAt + warpgroup_ * Plan::kStagingBytes);
  }
  __device__ __forceinline__ float* factors(int item) const {
    return reinterpret_cast<float*>(shared_ + Plan::kFactorsAt) + (warpgroup_ * 2 + item % 2) * Plan::kTokens;
  }

  __device__ __forceinline__ int row() const { return thread_ / 32 * 16 + thread_ % 32 / 4; }

  // Eight out features a thread.
  __device__ __forceinline__ void store_rows(const WorkItem& w, const float* factors, int first_n, int first_token) {
    const int n = first_n + thread_ % 8 * 8;
    if (n >= args_.n) return;
    const int rows = min(w.num_rows - first_token, Plan::kHalf);
    const float4 zero = {};
    const float* bias =
        args_.bias == nullptr ? nullptr : args_.bias + static_cast<int64_t>(w.expert) * args_.padded_n + n;
    const float4 b0 = bias == nullptr ? zero : *reinterpret_cast<const float4*>(bias);
    const float4 b1 = bias == nullptr ? zero : *reinterpret_cast<const float4*>(bias + 4);
    const int64_t first = (static_cast<int64_t>(w.first_row) + first_token) * args_.out_pitch + n;
    const float* values = staging() + thread_ % 8 * 8;
    const bool floats = args_.output == GemmOutput::kRowsF32;
#pragma unroll 2
    for (int token = thread_ / 8; token < rows; token += 16) {
      const float factor = factors[first_token + token];
      float y[4], z[4];
      read(values + token * Plan::kStagingPitch, factor, b0, y);
      read(values + token * Plan::kStagingPitch + 4, factor, b1, z);
      const int64_t at = first + token * args_.out_pitch;
      if (floats) {
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = numerics::canonical(y[i]), z[i] = numerics::canonical(z[i]);
        float4* out = reinterpret_cast<float4*>(static_cast<float*>(args_.out) + at);
        out[0] = make_float4(y[0], y[1], y[2], y[3]);
        out[1] = make_float4(z[0], z[1], z[2], z[3]);
      } else {
        *reinterpret_cast<uint4*>(static_cast<uint16_t*>(args_.out) + at) =
            make_uint4(pack(y[0], y[1]), pack(y[2], y[3]), pack(z[0], z[1]), pack(z[2], z[3]));
      }
    }
  }

  template <int First>
  __device__ __forceinline__ void stage(const float (&total)[Plan::kTokens / 2]) {
    float* place = staging() + thread_ % 4 * 2 * Plan::kStagingPitch + row();
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      place[(i / 4 * 8 + i % 2) * Plan::kStagingPitch + i % 4 / 2 * 8] = total[First + i];
    }
  }

  __device__ __forceinline__ void store_activated(const WorkItem& w, const float* factors, int first_n,
                                                  int first_token) {
    const int rows = min(w.num_rows - first_token, Plan::kHalf);
    const int64_t first_row = static_cast<int64_t>(w.first_row) + first_token;
    const bool gated = args_.activation.gated();
    // Four channels a thread: their gates and their ups lie eight prepared rows apart; without gates sixteen lanes do.
    const int lanes = gated ? 8 : 16;
    const int channel = thread_ % lanes * 4;
    const int local = gated ? channel / 8 * 16 + channel % 8 : channel;
    if (first_n + local >= args_.n) return;
    const float4 zero = {};
    const float* bias = args_.bias == nullptr ? nullptr : args_.bias + static_cast<int64_t>(w.expert) * args_.padded_n;
    const float4 b0 = bias == nullptr ? zero : *reinterpret_cast<const float4*>(bias + first_n + local);
    const float4 b1 = bias == nullptr || !gated ? zero : *reinterpret_cast<const float4*>(bias + first_n + local + 8);
    uint16_t* out =
        static_cast<uint16_t*>(args_.out) + first_row * args_.out_pitch + (gated ? first_n / 2 : first_n) + channel;
    const float* values = staging() + local;
    const bool silu = args_.activation.kind == numerics::Activation::kSilu;
#pragma unroll 1
    for (int token = thread_ / lanes; token < rows; token += 128 / lanes) {
      const float factor = factors[first_token + token];
      float gate[4], up[4] = {};
      read(values + token * Plan::kStagingPitch, factor, b0, gate);
      if (gated) read(values + token * Plan::kStagingPitch + 8, factor, b1, up);
      if (silu) {
        activate_silu<4>(args_.activation, gate, up);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) gate[i] = numerics::activation_f32(args_.activation, gate[i], up[i]);
      }
      *reinterpret_cast<uint2*>(out + token * args_.out_pitch) =
          make_uint2(pack(gate[0], gate[1]), pack(gate[2], gate[3]));
    }
  }

  __device__ __forceinline__ void read(const float* values, float factor, const float4& bias, float (&y)[4]) const {
    const float4 four = *reinterpret_cast<const float4*>(values);
    y[0] = four.x * factor;
    y[1] = four.y * factor;
    y[2] = four.z * factor;
    y[3] = four.w * factor;
    if (args_.bias == nullptr) return;
    y[0] = y[0] + bias.x;
    y[1] = y[1] + bias.y;
    y[2] = y[2] + bias.z;
    y[3] = y[3] + bias.w;
  }

  // Nearest even, NaN to 0x7FFF, subnormals kept: what numerics::bf16_from_f32 does (tests compare).
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
  }

  const GemmArguments& args_;
  uint8_t* shared_;
  int warpgroup_, thread_;
};

}  // namespace quadrille::kernels::cuda
