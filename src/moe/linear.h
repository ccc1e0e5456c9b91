// SPDX-License-Identifier: Apache-2.0
// A linear layer as a tagged variant: what the quantisation config decided for a module, and nothing above knows which.
// Views over prepared weights; the model owns them. Called by layer.h and by the decoder for its projections.
#pragma once

#include <cstdint>
#include <variant>

#include "kernels/api/problems.h"
#include "kernels/api/table.h"

namespace quadrille::parallel {
class Communicator;
}

namespace quadrille::moe {

// Which scale a quantised row has that is split over ranks (docs/numerics.md section 6).
enum class SplitScale {
  kAgreed,  // of the absmax over all ranks: codes and scales are those of one rank (the contract)
  kLocal,   // of the absmax over the columns of each rank: no exchange; what other engines do
};

// With what a layer is computed. Passed along, never stored globally.
struct Execution {
  const kernels::KernelTable* table = nullptr;
  kernels::KernelContext kernels;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Rounding rounding = kernels::Rounding::kBf16;
  // The tensor-parallel ranks that hold the other columns of row-parallel layers; null or one rank: layers are whole.
  // Every rank then runs the same layers over the same rows.
  parallel::Communicator* ranks = nullptr;
  SplitScale split_scale = SplitScale::kAgreed;

  // The expert-parallel ranks that hold the other experts (MoeLayer::placement); null or one rank: every expert is
  // here. In a grid of both each tensor-parallel rank has expert ranks of its own, those with its number.
  parallel::Communicator* expert_ranks = nullptr;

  bool is_split() const;   // more than one tensor-parallel rank
  bool is_spread() const;  // more than one expert-parallel rank
};

// `num_experts` matrices of the same shape; a plain layer has one.
struct W4Linear {
  int64_t num_experts = 1;
  int64_t n = 0, k = 0;
  int64_t group_size = 0;                       // 32, 64, 128; 0: one scale a channel
  const kernels::W4Matrix* matrices = nullptr;  // [num_experts]
  const float* const* bias = nullptr;           // [num_experts] -> [n], or null
};
struct Bf16Linear {
  int64_t num_experts = 1;
  int64_t n = 0, k = 0;
  const uint16_t* const* matrices = nullptr;  // [num_experts] -> [np/16, k, 16]
  const float* const* bias = nullptr;         // [num_experts] -> [n], or null
};
using Linear = std::variant<Bf16Linear, W4Linear>;

inline int64_t linear_n(const Linear& linear) {
  return std::visit([](const auto& l) { return l.n; }, linear);
}
inline int64_t linear_k(const Linear& linear) {
  return std::visit([](const auto& l) { return l.k; }, linear);
}
inline bool is_w4a8(const Linear& linear) {
  return std::holds_alternative<W4Linear>(linear);
}

// Rows that several linear layers read: quantised when the first W4A8 layer asks, once.
class LinearInput {
 public:
  // x [num_rows, k]; must stay until the last layer has read it.
  LinearInput(const float* x, int64_t num_rows, int64_t k) : x_(x), num_rows_(num_rows), k_(k) {}
  // Quantised already: act [num_rows, k], act_scale [num_rows]. For W4A8 layers alone.
  LinearInput(const uint8_t* act, const float* act_scale, int64_t num_rows, int64_t k)
      : num_rows_(num_rows), k_(k), act_(act), act_scale_(act_scale) {}

  const float* x() const { return x_; }
  int64_t num_rows() const { return num_rows_; }
  int64_t k() const { return k_; }
  // Quantises on the first call, into the scratch of `execution`.
  void quantise(const Execution& execution);
  const uint8_t* act() const { return act_; }            // [num_rows, k] e4m3, null before quantise()
  const float* act_scale() const { return act_scale_; }  // [num_rows]

 private:
  const float* x_ = nullptr;
  int64_t num_rows_, k_;
  const uint8_t* act_ = nullptr;
  const float* act_scale_ = nullptr;
};

enum class OutputRounding {
  kAsExecution,  // a rounding point of the contract
  kNone,         // stays fp32: the gated activation rounds by its own rule
};

// out [slots, n] = linear(input rows of each slot), rounded to bf16 where `rounding` and the execution say so.
void apply_linear(const Linear& linear, LinearInput* input, const kernels::GroupedRows& rows, OutputRounding rounding,
                  const Execution& execution, float* out);

// One matrix, every row once: out [input rows, n].
void apply_linear(const Linear& linear, LinearInput* input, const Execution& execution, float* out);

// out [num_rows, width] = the activation of gate_up [num_rows, 2 * width] ([num_rows, width] where it is not gated).
void apply_activation(const kernels::ActivationRule& rule, const float* gate_up, int64_t num_rows, int64_t width,
                      const Execution& execution, float* out);

// x = bf16(x) in round bf16, elementwise; nothing in round f32.
void round_values(const Execution& execution, float* x, int64_t count);

}  // namespace quadrille::moe
