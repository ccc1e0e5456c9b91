// SPDX-License-Identifier: Apache-2.0
// From accumulators to memory: through a transposing buffer in shared memory, so that the scaling, the activation and
// the rounding are one short run-time loop and rows are stored in 8 to 32 byte pieces.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/w4a8_gemm/work.cuh"
#include "numerics/activation.h"

namespace quadrille::kernels::cuda {

template <typename Plan>
class Epilogue {
 public:
  __device__ Epilogue(const GemmArguments& args, uint8_t* shared, int warpgroup, int thread)
      : args_(args),
        staging_(reinterpret_cast<float*>(shared + Plan::kStagingAt + warpgroup * Plan::kStagingBytes)),
        warpgroup_(warpgroup),
        thread_(thread) {}

  __device__ __forceinline__ void store(const WorkItem& w, const float (&total)[Plan::kTokens / 2]) {
    const float factor = row_factor(w);  // on its way while the accumulators are stored
    sync();                              // pairs with the second one of the item before: its rows have been read
    if (thread_ < Plan::kTokens) factors()[thread_] = factor;
    const int row = thread_ / 32 * 16 + thread_ % 32 / 4;
#pragma unroll
    for (int i = 0; i < Plan::kTokens / 2; ++i) {
      const int token = i / 4 * 8 + thread_ % 4 * 2 + i % 2;
      staging_[token * Plan::kStagingPitch + row + i % 4 / 2 * 8] = total[i];
    }
    sync();  // all rows are written
    const int first_n = (w.row_tile * Plan::kWarpgroups + warpgroup_) * layout::kRecordRows;
    if (args_.output == GemmOutput::kActivated && args_.activation.gated()) {
      store_gated(w, first_n);
    } else {
      store_rows(w, first_n + thread_ % 8 * 8);
    }
  }

 private:
  // What a thread's out features have in common over all tokens: `Count` of them from n on.
  template <int Count>
  struct Features {
    float channel[Count];
    float bias[Count];
  };
  template <int Count>
  __device__ __forceinline__ Features<Count> features(const WorkItem& w, int n) const {
    Features<Count> f{};
    const int64_t first = static_cast<int64_t>(w.expert) * args_.padded_n + n;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      if constexpr (Plan::kVllm) f.channel[i] = args_.channel_scale[first + i];
      if (args_.bias != nullptr) f.bias[i] = args_.bias[first + i];
    }
    return f;
  }

  // All threads of the warpgroup.
  __device__ __forceinline__ void sync() {
    if (Plan::kWarpgroups == 1 || warpgroup_ == 0) {
      ptx::named_barrier<1, 128>();
    } else {
      ptx::named_barrier<2, 128>();
    }
  }

  // The factor of row `thread`: sa * 512, sa, or 512 (section 3).
  __device__ __forceinline__ float row_factor(const WorkItem& w) const {
    if (Plan::kArithmetic == Arithmetic::kBlock || thread_ >= w.num_rows) return 512.0f;
    float scale;
    if constexpr (Plan::kResident) {
      scale = staging_[Plan::kStagingBytes / 4 + thread_];  // Plan::kScalesAt
    } else {
      scale = args_.act_scale[static_cast<int64_t>(w.first_row) + thread_];
    }
    return Plan::kVllm ? scale : scale * 512.0f;
  }
  __device__ __forceinline__ float* factors() const { return staging_ + Plan::kTokens * Plan::kStagingPitch; }
  // y with its bias. A NaN keeps its payload here: every way out makes it canonical.
  template <int Count>
  __device__ __forceinline__ void finish(const Features<Count>& f, float factor, float (&y)[Count]) const {
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      y[i] = Plan::kVllm ? f.channel[i] * (factor * y[i]) : y[i] * factor;
      if (args_.bias != nullptr) y[i] = y[i] + f.bias[i];
    }
  }

  template <int Count>
  __device__ __forceinline__ void read(const float* values, float (&y)[Count]) const {
#pragma unroll
    for (int i = 0; i < Count; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(values + i);
      y[i] = four.x;
      y[i + 1] = four.y;
      y[i + 2] = four.z;
      y[i + 3] = four.w;
    }
  }

  __device__ __forceinline__ float activate(float gate, float up) const {
    if constexpr (Plan::kVllm) {
      return numerics::activation_vllm(args_.activation, gate, up);
    } else {
      return numerics::activation_f32(args_.activation, gate, up);  // rounded by pack()
    }
  }

  // Four channels a thread: their gates and their ups lie eight prepared rows apart.
  __device__ __forceinline__ void store_gated(const WorkItem& w, int first_n) {
    const int channel = thread_ % 8 * 4;
    const int local = channel / 8 * 16 + channel % 8;
    if (first_n + local >= args_.n) return;
    const auto gates = features<4>(w, first_n + local);
    const auto ups = features<4>(w, first_n + local + 8);
#pragma unroll 1
    for (int token = thread_ / 8; token < w.num_rows; token += 16) {
      const int64_t row = static_cast<int64_t>(w.first_row) + token;
      const float factor = factors()[token];
      float gate[4], up[4];
      read(staging_ + token * Plan::kStagingPitch + local, gate);
      read(staging_ + token * Plan::kStagingPitch + local + 8, up);
      finish(gates, factor, gate);
      finish(ups, factor, up);
#pragma unroll
      for (int i = 0; i < 4; ++i) gate[i] = activate(gate[i], up[i]);
      uint16_t* out = static_cast<uint16_t*>(args_.out) + row * args_.out_pitch + first_n / 2 + channel;
      *reinterpret_cast<uint2*>(out) = make_uint2(pack(gate[0], gate[1]), pack(gate[2], gate[3]));
    }
  }

  // Eight prepared rows a thread; without a gate they are the channels.
  __device__ __forceinline__ void store_rows(const WorkItem& w, int n) {
    if (n >= args_.n) return;
    const bool activated = args_.output == GemmOutput::kActivated;
    const auto f = features<8>(w, n);
#pragma unroll 1
    for (int token = thread_ / 8; token < w.num_rows; token += 16) {
      const int64_t row = static_cast<int64_t>(w.first_row) + token;
      float y[8];
      read(staging_ + token * Plan::kStagingPitch + thread_ % 8 * 8, y);
      finish(f, factors()[token], y);
      if (activated) {
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = activate(y[i], 0.0f);
      }
      if (args_.output == GemmOutput::kRowsF32) {
        float4* out = reinterpret_cast<float4*>(static_cast<float*>(args_.out) + row * args_.out_pitch + n);
#pragma unroll
        for (int i = 0; i < 8; ++i) y[i] = numerics::canonical(y[i]);
        out[0] = make_float4(y[0], y[1], y[2], y[3]);
        out[1] = make_float4(y[4], y[5], y[6], y[7]);
      } else {
        uint4* out = reinterpret_cast<uint4*>(static_cast<uint16_t*>(args_.out) + row * args_.out_pitch + n);
        *out = make_uint4(pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7]));
      }
    }
  }

  // Nearest even, NaN to 0x7FFF, subnormals kept: what numerics::bf16_from_f32 does (tests compare).
  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
  }

  const GemmArguments& args_;
  float* staging_;
  int warpgroup_, thread_;
};

}  // namespace quadrille::kernels::cuda
