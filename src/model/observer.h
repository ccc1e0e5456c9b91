// SPDX-License-Identifier: Apache-2.0
// Looks into a step: named tensors between the layers, for tests and debugging. Nothing is copied unless asked.
#pragma once

#include <cstdint>

namespace quadrille::model {

// Called from the thread that runs the step. Pointers are valid during the call only.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // Residual stream behind layer `layer`: [num_tokens, width].
  virtual void hidden(int64_t layer, const float* x, int64_t num_tokens, int64_t width) {
    ignore(layer, x, num_tokens, width);
  }
  // Behind the last norm: [num_rows, width], the rows whose logits are wanted.
  virtual void final_norm(const float* x, int64_t num_rows, int64_t width) { ignore(x, num_rows, width); }
  // logits [num_tokens, num_experts]; ids, weights [num_tokens, top_k].
  virtual void router(int64_t layer, const float* logits, const int32_t* ids, const float* weights, int64_t num_tokens,
                      int64_t num_experts, int64_t top_k) {
    ignore(layer, logits, ids, weights, num_tokens, num_experts, top_k);
  }
  // Input and output of the feed-forward block of a MoE layer: [num_tokens, width].
  virtual void moe_block(int64_t layer, const float* input, const float* output, int64_t num_tokens, int64_t width) {
    ignore(layer, input, output, num_tokens, width);
  }

 private:
  template <typename... Args>
  static void ignore(const Args&...) {}
};

}  // namespace quadrille::model
