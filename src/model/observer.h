// SPDX-License-Identifier: Apache-2.0
// Looks into a step: named tensors between the layers, for tests and debugging. Nothing is copied unless asked.
#pragma once

#include <cstdint>

namespace quadrille::moe {
struct Stage;
}

namespace quadrille::model {

// Parts of a step that have stages or add to the residual stream.
enum class Module {
  kEmbedding,  // layer -1
  kAttention,
  kExperts,      // the routed ones
  kShared,       // the shared expert
  kMlp,          // the feed-forward of a dense layer
  kFeedForward,  // what a layer adds behind attention, whichever it has
};

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
  // Whether stage() is wanted; asked at every layer.
  virtual bool wants_stages() const { return false; }
  // A tensor inside a module. kAttention: q, k, v [num_tokens, rows of this rank] as the projections give them; x or
  // (o_proj in W4A8) a and a_scale, the input of o_proj. The others: the stages of moe/layer.h.
  virtual void stage(int64_t layer, Module module, const moe::Stage& stage) { ignore(layer, module, stage); }
  // What goes into the residual stream [num_tokens, width], complete and rounded: the embedding, then what attention
  // and feed-forward of each layer add. May be changed: the step goes on with what stands there.
  virtual void update(int64_t layer, Module module, float* y, int64_t num_tokens, int64_t width) {
    ignore(layer, module, y, num_tokens, width);
  }

 private:
  template <typename... Args>
  static void ignore(const Args&...) {}
};

}  // namespace quadrille::model
