// SPDX-License-Identifier: Apache-2.0
// From accumulators to memory: through a transposing buffer in shared memory, so that the scaling, the activation and
// the rounding are one short run-time loop and rows are stored in 8 to 32 byte pieces.
#pragma once

#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/w4a8_gemm/work.cuh"
#include "numerics/activation.h"
#include "numerics/bf16.h"
#include "numerics/w4a8.h"

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
    sync();  // pairs with the second one of the item before: its rows have been read
    const int row = thread_ / 32 * 16 + thread_ % 32 / 4;
#pragma unroll
    for (int i = 0; i < Plan::kTokens / 2; ++i) {
      const int token = i / 4 * 8 + thread_ % 4 * 2 + i % 2;
      staging_[token * Plan::kStagingPitch + row + i % 4 / 2 * 8] = total[i];
    }
    sync();  // all rows are written
    const int first_n = (w.row_tile * Plan::kWarpgroups + warpgroup_) * layout::kRecordRows;
    // Eight threads a token, eight prepared rows each.
    const int n = first_n + thread_ % 8 * 8;
    if (args_.output == GemmOutput::kActivated && args_.activation.gated()) {
      store_gated(w, first_n);
    } else if (n < args_.n) {
      store_rows(w, n);
    }
  }

 private:
  // All threads of the warpgroup.
  __device__ __forceinline__ void sync() {
    if (Plan::kWarpgroups == 1 || warpgroup_ == 0) {
      ptx::named_barrier<1, 128>();
    } else {
      ptx::named_barrier<2, 128>();
    }
  }

  // y of a prepared row before the bias: section 3.
  __device__ __forceinline__ float result(const WorkItem& w, int64_t row, int n, float value) const {
    if constexpr (Plan::kArithmetic == Arithmetic::kExact) {
      return numerics::exact_result(value, args_.act_scale[row]);
    } else if constexpr (Plan::kArithmetic == Arithmetic::kBlock) {
      return numerics::canonical(value * 512.0f);
    } else {
      const float channel = args_.channel_scale[static_cast<int64_t>(w.expert) * args_.padded_n + n];
      return numerics::vllm_result(channel, args_.act_scale[row], value);
    }
  }
  __device__ __forceinline__ float biased(const WorkItem& w, int64_t row, int n, float value) const {
    const float y = result(w, row, n, value);
    if (args_.bias == nullptr) return y;
    return numerics::canonical(y + args_.bias[static_cast<int64_t>(w.expert) * args_.padded_n + n]);
  }
  __device__ __forceinline__ float activate(float gate, float up) const {
    if constexpr (Plan::kVllm) {
      return numerics::activation_vllm(args_.activation, gate, up);
    } else {
      return numerics::activation_exact(args_.activation, gate, up);
    }
  }

  // Four channels a thread: their gates and their ups lie eight prepared rows apart.
  __device__ __forceinline__ void store_gated(const WorkItem& w, int first_n) {
    const int channel = thread_ % 8 * 4;
    const int local = channel / 8 * 16 + channel % 8;
    if (first_n + local >= args_.n) return;
#pragma unroll 1
    for (int token = thread_ / 8; token < w.num_rows; token += 16) {
      const int64_t row = static_cast<int64_t>(w.first_row) + token;
      const float* values = staging_ + token * Plan::kStagingPitch + local;
      uint32_t packed[2];
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const float first = activate(biased(w, row, first_n + local + i, values[i]),
                                     biased(w, row, first_n + local + 8 + i, values[8 + i]));
        const float second = activate(biased(w, row, first_n + local + i + 1, values[i + 1]),
                                      biased(w, row, first_n + local + 9 + i, values[9 + i]));
        packed[i / 2] = pack(first, second);
      }
      uint16_t* out = static_cast<uint16_t*>(args_.out) + row * args_.out_pitch + first_n / 2 + channel;
      *reinterpret_cast<uint2*>(out) = make_uint2(packed[0], packed[1]);
    }
  }

  // Eight prepared rows a thread; without a gate they are the channels.
  __device__ __forceinline__ void store_rows(const WorkItem& w, int n) {
    const bool activated = args_.output == GemmOutput::kActivated;
#pragma unroll 1
    for (int token = thread_ / 8; token < w.num_rows; token += 16) {
      const int64_t row = static_cast<int64_t>(w.first_row) + token;
      const float* values = staging_ + token * Plan::kStagingPitch + thread_ % 8 * 8;
      float y[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        y[i] = biased(w, row, n + i, values[i]);
        if (activated) y[i] = activate(y[i], 0.0f);
      }
      if (args_.output == GemmOutput::kRowsF32) {
        float4* out = reinterpret_cast<float4*>(static_cast<float*>(args_.out) + row * args_.out_pitch + n);
        out[0] = make_float4(y[0], y[1], y[2], y[3]);
        out[1] = make_float4(y[4], y[5], y[6], y[7]);
      } else {
        uint4* out = reinterpret_cast<uint4*>(static_cast<uint16_t*>(args_.out) + row * args_.out_pitch + n);
        *out = make_uint4(pack(y[0], y[1]), pack(y[2], y[3]), pack(y[4], y[5]), pack(y[6], y[7]));
      }
    }
  }

  static __device__ __forceinline__ uint32_t pack(float first, float second) {
    return static_cast<uint32_t>(numerics::bf16_from_f32(first)) |
           static_cast<uint32_t>(numerics::bf16_from_f32(second)) << 16;
  }

  const GemmArguments& args_;
  float* staging_;
  int warpgroup_, thread_;
};

}  // namespace quadrille::kernels::cuda
