// SPDX-License-Identifier: Apache-2.0
// What a backend is asked to compute: plain structs over raw pointers, each pointer with its shape. docs/numerics.md
// defines every result to the bit. Activations are fp32 in memory on the CPU backends; where Rounding is kBf16 their
// values are bf16 values at the rounding points of the contract. Row-major unless a layout/ map is named.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "numerics/activation.h"

namespace quadrille::kernels {

// The named arithmetics of a W4A8 layer (docs/numerics.md section 3).
enum class Numerics { kExact, kVllm };

// Where intermediate values are rounded (docs/numerics.md section 4): to bf16, or nowhere.
enum class Rounding { kBf16, kF32 };

// How a checkpoint spells 4-bit codes.
enum class W4Source : int32_t {
  kUint4b8,  // [n, k/8] I32 words, nibble = q + 8, lowest nibble = lowest k
  kInt4,     // [n, k/8] I32 words, two's complement nibbles
  kInt8,     // [n, k] I8, -8..7
};

// How a router scores its experts.
enum class Scoring : int32_t {
  kSoftmaxBeforeTopK,  // softmax over all experts, then the best (Mixtral, Qwen, OLMoE, DeepSeek-V2)
  kSoftmaxAfterTopK,   // the best logits, then softmax over those
  kSigmoid,            // each logit for itself (DeepSeek-V3, GLM)
};

// Rows of a grouped product: rows [offsets[e], offsets[e+1]) belong to expert e. A plain linear layer has one expert.
struct GroupedRows {
  int64_t num_experts = 1;
  const int64_t* offsets = nullptr;     // [num_experts + 1] ascending; offsets[0] = 0
  const int32_t* source_row = nullptr;  // [offsets[num_experts]] row of the input a slot reads; null: the slot itself
};

// One 4-bit matrix in the CPU layout (layout/w4_lanes16.h): 16 rows in the lanes of a vector, two's complement nibbles,
// zero codes behind n and behind k. kp = k rounded up to 32, np = n rounded up to 16, groups = ceil(k / group_size).
struct W4Matrix {
  const uint32_t* codes = nullptr;       // [np/16, kp/8, 16] nibble j of a word is k = 8 * word + j
  const uint16_t* scale_bf16 = nullptr;  // exact: [np/16, groups, 16] bf16, zero behind n
  const uint8_t* scale_e4m3 = nullptr;   // vllm: [np/16, groups, 16] e4m3 group scale (already divided by 8)
  const float* channel_scale = nullptr;  // vllm: [np] fp32 channel scale (already times 8)
};

// Activation scales of 1 x 128 blocks (`block` in section 3 of docs/numerics.md): that of expert e, input row r and
// columns [128 b, 128 b + 128) is data[e * expert_stride + r * row_stride + b * block_stride].
struct BlockScales {
  const float* data = nullptr;  // null: one scale a row
  int64_t expert_stride = 0;
  int64_t row_stride = 0;
  int64_t block_stride = 0;

  QD_HD float of(int64_t expert, int64_t row, int64_t block) const {
    return data[expert * expert_stride + row * row_stride + block * block_stride];
  }
};
inline constexpr int64_t kScaleBlock = 128;  // columns that share a scale

// data [rows, num_blocks].
QD_HD constexpr BlockScales row_block_scales(const float* data, int64_t num_blocks) {
  return {data, 0, num_blocks, 1};
}
// data [experts, num_blocks, max_m] of the masked layout; input row r of expert e is e * max_m + (its row there).
QD_HD constexpr BlockScales masked_block_scales(const float* data, int64_t num_blocks, int64_t max_m) {
  return {data, (num_blocks - 1) * max_m, 1, max_m};
}

// out[s, :] = W_e * act[source_row[s], :] for every slot s of expert e: section 3 of docs/numerics.md, before any bf16.
struct W4A8Gemm {
  Numerics numerics = Numerics::kExact;
  int64_t n = 0;           // out features
  int64_t k = 0;           // in features, a multiple of 8
  int64_t group_size = 0;  // 32, 64, 128, or 0: one scale a channel (computed in pieces of 128)
  GroupedRows rows;
  const W4Matrix* weights = nullptr;   // [num_experts]
  const uint8_t* act = nullptr;        // [input rows, k] e4m3 codes
  const float* act_scale = nullptr;    // [input rows]; not read where block_scale has data
  BlockScales block_scale;             // `exact` only
  const float* const* bias = nullptr;  // [num_experts] -> [n] fp32, added in fp32; null: none
  float* out = nullptr;                // [slots, n]
};

// One bf16 matrix in the CPU layout (layout/bf16_lanes16.h): [np/16, k, 16], zero rows behind n.
// out[s, j] = one fma chain from +0 over k ascending (fp32), then + bias, then rounded where `rounding` says so.
struct Bf16Gemm {
  Rounding rounding = Rounding::kF32;  // of the output
  int64_t n = 0;
  int64_t k = 0;  // any
  GroupedRows rows;
  const uint16_t* const* weights = nullptr;  // [num_experts] -> [np/16, k, 16] bf16
  const float* x = nullptr;                  // [input rows, k]
  const float* const* bias = nullptr;        // [num_experts] -> [n] fp32; null: none
  float* out = nullptr;                      // [slots, n]
};

// Section 2: act_scale[r] = max(absmax / 448, 1 / (448 * 512)), act[r, :] = E4(x / act_scale).
struct QuantizeRows {
  int64_t num_rows = 0;
  int64_t k = 0;
  const float* x = nullptr;    // [num_rows, k]
  uint8_t* act = nullptr;      // [num_rows, k] e4m3
  float* act_scale = nullptr;  // [num_rows]
};

using numerics::Activation;
using numerics::ActivationRule;

// h = act(gate) * up, or act(x) where the rule is not gated, with the rounding points of section 4 (they differ between
// exact and vllm).
struct GatedActivation {
  ActivationRule activation;
  Numerics numerics = Numerics::kExact;
  Rounding rounding = Rounding::kBf16;
  int64_t num_rows = 0;
  int64_t width = 0;               // I
  const float* gate_up = nullptr;  // [num_rows, 2 * width] gate columns, then up columns; not gated: [num_rows, width]
  float* out = nullptr;            // [num_rows, width]
};

// RMSNorm over rows of `width`: r = 1 / sqrt(mean(x^2) + eps); kBf16: bf16(bf16(x * r) * weight); kF32: (x * r) *
// weight. The sum runs in the 32-lane order of section 1.
struct RmsNorm {
  Rounding rounding = Rounding::kBf16;
  int64_t num_rows = 0;
  int64_t width = 0;
  int64_t row_stride = 0;  // elements between rows of x and of out
  float eps = 0;
  const float* x = nullptr;          // [num_rows, width] with row_stride
  const uint16_t* weight = nullptr;  // [width] bf16
  float* out = nullptr;              // like x; may be x
};

// Rotary embedding, half (NeoX) pairs (i, i + rotary_dim / 2) of the first rotary_dim values of each head, in place:
// y[i] = x[i] * cos - x[i + d/2] * sin; y[i + d/2] = x[i + d/2] * cos + x[i] * sin (two products, one sum, no fma).
struct Rope {
  Rounding rounding = Rounding::kBf16;
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  int64_t token_stride = 0;           // elements between tokens of x
  const float* cos = nullptr;         // [max_position, rotary_dim / 2]
  const float* sin = nullptr;         // [max_position, rotary_dim / 2]
  const int32_t* position = nullptr;  // [num_tokens]
  float* x = nullptr;                 // [num_tokens, num_heads, head_dim] with token_stride
};

// Paged attention (section 5 of the contract): causal, grouped query heads, optional sliding window; reduces over key
// blocks of 64 at absolute positions, the same for prefill, every chunk size and decode. Page = 64 positions
// (layout/kv_page.h): keys [kv_heads, head_dim, 64], values [kv_heads, 64, head_dim].
enum class KvType { kBf16, kF32 };
struct Attention {
  Rounding rounding = Rounding::kBf16;  // of the output
  KvType kv_type = KvType::kBf16;
  int64_t num_tokens = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;                   // keys j with position - window < j <= position; 0: all j <= position
  float scale = 0;                      // softmax scale
  int64_t q_stride = 0;                 // elements between tokens of q
  const float* q = nullptr;             // [num_tokens, num_heads, head_dim] with q_stride
  const int32_t* position = nullptr;    // [num_tokens] absolute position of the query
  const int32_t* sequence = nullptr;    // [num_tokens] row of page_table
  const int32_t* page_table = nullptr;  // [sequences, page_table_stride] page of positions [64 i, 64 i + 64)
  int64_t page_table_stride = 0;
  const void* keys = nullptr;    // [pages, kv_heads, head_dim, 64] KvType
  const void* values = nullptr;  // [pages, kv_heads, 64, head_dim] KvType
  float* out = nullptr;          // [num_tokens, num_heads, head_dim]
};

// Router logits (also shared-expert gates): dot products in the 32-lane order of section 1, fp32 out, not rounded.
struct RouterLogits {
  int64_t num_tokens = 0;
  int64_t num_experts = 0;
  int64_t k = 0;
  const float* x = nullptr;          // [num_tokens, k]
  const uint16_t* weight = nullptr;  // [num_experts, k] bf16
  float* logits = nullptr;           // [num_tokens, num_experts]
};

// Section 4, combine: acc = +0; for j ascending: acc = fmaf(weight[t, j], row[slot[t, j]], acc); then the shared expert
// fmaf(shared_gate[t] or 1, shared[t], acc); out = rounded acc. slot -1: the route is not here and adds nothing.
struct Combine {
  Rounding rounding = Rounding::kBf16;
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t width = 0;                   // H
  const float* rows = nullptr;         // [slots, width] GEMM2 rows
  const int32_t* slot = nullptr;       // [num_tokens, top_k]
  const float* weight = nullptr;       // [num_tokens, top_k]
  const float* shared = nullptr;       // [num_tokens, width] or null
  const float* shared_gate = nullptr;  // [num_tokens] or null: 1
  float* out = nullptr;                // [num_tokens, width]
};

// x = rounded(x + y), elementwise.
struct AddResidual {
  Rounding rounding = Rounding::kBf16;
  int64_t count = 0;
  float* x = nullptr;        // [count]
  const float* y = nullptr;  // [count]
};

}  // namespace quadrille::kernels
