// SPDX-License-Identifier: Apache-2.0
// Scalar row-wise steps over the shared functions of numerics/; rows are split over the pool.
#include "kernels/ref/rowwise.h"

#include "kernels/ref/counted.h"
#include "numerics/act_quant.h"
#include "numerics/activation.h"
#include "numerics/elementwise.h"
#include "numerics/lane_sum.h"

namespace quadrille::kernels::ref {

void quantize_rows(const QuantizeRows& p, const KernelContext& context) {
  for_rows(context, p.num_rows, [&](int64_t row) {
    const float* x = p.x + row * p.k;
    float absmax = 0.0f;
    for (int64_t i = 0; i < p.k; ++i) absmax = numerics::absmax_step(absmax, x[i]);
    const float scale = numerics::act_scale_of_absmax(absmax);
    p.act_scale[row] = scale;
    for (int64_t i = 0; i < p.k; ++i) p.act[row * p.k + i] = numerics::act_code(x[i], scale);
  });
}

void gated_activation(const GatedActivation& p, const KernelContext& context) {
  const int64_t columns = p.activation.gated() ? 2 * p.width : p.width;
  for_rows(context, p.num_rows, [&](int64_t row) {
    const float* gate = p.gate_up + row * columns;
    const float* up = p.activation.gated() ? gate + p.width : gate;
    float* out = p.out + row * p.width;
    for (int64_t i = 0; i < p.width; ++i) {
      if (p.rounding == Rounding::kF32) {
        out[i] = numerics::activation_f32(p.activation, gate[i], up[i]);
      } else if (p.numerics == Numerics::kExact) {
        out[i] = numerics::activation_exact(p.activation, gate[i], up[i]);
      } else {
        out[i] = numerics::activation_vllm(p.activation, gate[i], up[i]);
      }
    }
  });
}

void rms_norm(const RmsNorm& p, const KernelContext& context) {
  const bool to_bf16 = p.rounding == Rounding::kBf16;
  for_rows(context, p.num_rows, [&](int64_t row) {
    const float* x = p.x + row * p.row_stride;
    float* out = p.out + row * p.row_stride;
    const float r = numerics::rms_scale(numerics::lane_sum_squares(x, p.width), p.width, p.eps);
    for (int64_t i = 0; i < p.width; ++i) {
      out[i] = numerics::rms_norm_value(x[i], r, numerics::bf16_to_f32(p.weight[i]), to_bf16);
    }
  });
}

void rope(const Rope& p, const KernelContext& context) {
  const bool to_bf16 = p.rounding == Rounding::kBf16;
  const int64_t half = p.rotary_dim / 2;
  for_rows(context, p.num_tokens, [&](int64_t token) {
    const float* cos = p.cos + p.position[token] * half;
    const float* sin = p.sin + p.position[token] * half;
    for (int64_t head = 0; head < p.num_heads; ++head) {
      float* x = p.x + token * p.token_stride + head * p.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[i];
        const float b = x[i + half];
        x[i] = numerics::rope_first(a, b, cos[i], sin[i], to_bf16);
        x[i + half] = numerics::rope_second(a, b, cos[i], sin[i], to_bf16);
      }
    }
  });
}

void router_logits(const RouterLogits& p, const KernelContext& context) {
  for_rows(context, p.num_tokens, [&](int64_t token) {
    for (int64_t e = 0; e < p.num_experts; ++e) {
      const float dot = numerics::lane_dot_bf16(p.x + token * p.k, p.weight + e * p.k, p.k);
      p.logits[token * p.num_experts + e] = numerics::canonical(dot);
    }
  });
}

void combine(const Combine& p, const KernelContext& context) {
  const bool to_bf16 = p.rounding == Rounding::kBf16;
  for_rows(context, p.num_tokens, [&](int64_t token) {
    const int32_t* slot = p.slot + token * p.top_k;
    const float* weight = p.weight + token * p.top_k;
    const float gate = p.shared_gate == nullptr ? 1.0f : p.shared_gate[token];
    for (int64_t i = 0; i < p.width; ++i) {
      float acc = 0.0f;
      for (int64_t j = 0; j < p.top_k; ++j) {
        if (slot[j] < 0) continue;
        acc = numerics::combine_step(weight[j], p.rows[slot[j] * p.width + i], acc);
      }
      if (p.shared != nullptr) acc = numerics::combine_step(gate, p.shared[token * p.width + i], acc);
      p.out[token * p.width + i] = numerics::round_output(acc, to_bf16);
    }
  });
}

void add_residual(const AddResidual& p, const KernelContext& context) {
  constexpr int64_t kValuesPerRow = 4096;
  const bool to_bf16 = p.rounding == Rounding::kBf16;
  for_rows(context, (p.count + kValuesPerRow - 1) / kValuesPerRow, [&](int64_t row) {
    const int64_t end = p.count < (row + 1) * kValuesPerRow ? p.count : (row + 1) * kValuesPerRow;
    for (int64_t i = row * kValuesPerRow; i < end; ++i) p.x[i] = numerics::round_output(p.x[i] + p.y[i], to_bf16);
  });
}

}  // namespace quadrille::kernels::ref
