// SPDX-License-Identifier: Apache-2.0
// One step through the decoder on a GPU, enqueued on the caller's stream: nothing is read back, so that a step can be
// captured into a graph. The same steps and rounding points as decoder.cpp in round bf16. device_model.cpp owns the
// memory. The story of a block is device_decoder.cpp's enqueue_block().
#pragma once

#include <cstdint>
#include <span>

#include "core/result.h"
#include "device/device.h"
#include "kernels/api/device_decoder_problems.h"
#include "kernels/api/device_table.h"
#include "model/config.h"
#include "model/device_step.h"
#include "model/device_step_memory.h"
#include "model/device_weights.h"
#include "model/observer.h"

namespace quadrille::model {

// Device memory that a decoder works in; whoever makes it owns it.
struct DeviceDecoderMemory {
  void* workspace = nullptr;  // StepMemory::total bytes, 256-byte aligned
  uint16_t* pages = nullptr;  // [layers, num_pages, layout::KvTile::page_size()] bf16, zero at first
  int64_t num_pages = 0;
  const float* cos = nullptr;  // [positions, head_dim / 2]
  const float* sin = nullptr;
};

class DeviceDecoder {
 public:
  // Everything given must outlive the decoder. `config`, `weights`: of the rank (device_shard.h). With `ranks` every
  // rank enqueues the same steps; its collectives run on streams.main.
  DeviceDecoder(const ModelConfig& config, const DeviceWeightsView& weights, const kernels::DeviceTable& table,
                kernels::Numerics numerics, const StepMemory& parts, const DeviceDecoderMemory& memory,
                const moe::DeviceStreams& streams, DeviceShard shard = {}, const moe::DeviceRanks& ranks = {},
                bool joins_steps = true);

  // Where the block of the next step goes.
  int32_t* block() const { return memory_.at<int32_t>(parts_.block); }
  float* logits() const { return memory_.at<float>(parts_.logits); }
  int64_t logits_pitch() const { return model::logits_pitch(weights_, config_, shard_); }
  int32_t* tokens() const { return memory_.at<int32_t>(parts_.tokens); }
  uint32_t* status() const { return memory_.at<uint32_t>(parts_.status); }
  uint16_t* input_rows() const { return memory_.at<uint16_t>(parts_.normed); }
  uint16_t* output_rows() const { return memory_.at<uint16_t>(parts_.update); }

  // Zeroes what kernels expect to be zero and leave so; once, before the first step.
  Status clear_counters(device::Stream stream) const;

  // Tokens of a tile of the attention.
  int64_t tile_tokens() const;

  // Embedding and all layers over the block; the residual stream stays in the workspace. `observer` (null: none) looks
  // between the layers, which waits for the stream: not while it is captured.
  Status enqueue_layers(const StepShape& shape, StepObserver* observer = nullptr);
  // Behind it: last norm, logits and choice (greedy, or by the block's rules) of rows [first, first + count) of the
  // block's logit rows. The logits go to rows 0..count-1 of logits(), the choices to tokens() + first.
  Status enqueue_logits(const StepShape& shape, int64_t first, int64_t count, StepObserver* observer = nullptr);
  // The feed-forward of one layer by itself: input_rows() -> output_rows().
  Status enqueue_feed_forward(int64_t layer, int64_t num_tokens);

 private:
  // Rows of `x`, in the form that the matrix reads.
  struct Input {
    int64_t num_rows = 0;
    const uint16_t* x = nullptr;   // [num_rows, k] of bf16 matrices, and of W4A8 products that make their codes
    const uint8_t* act = nullptr;  // W4A8: [num_rows, act_pitch(k)]
    const float* act_scale = nullptr;
  };
  struct Output {
    kernels::GemmOutput form = kernels::GemmOutput::kRowsBf16;
    void* out = nullptr;
    int64_t pitch = 0;  // elements
  };
  Status enqueue_blocks(const StepShape& shape);
  Status enqueue_block(int64_t layer, const StepShape& shape);
  Status enqueue_embedding(const StepShape& shape);
  // Whether the attention itself makes the codes of o's input; an observer is shown the step.
  bool attention_quantises(int64_t layer, const StepShape& shape) const;
  Status enqueue_attention(int64_t layer, const StepShape& shape);
  // Steps of few tokens: whether the product of a matrix makes the codes of its bf16 rows itself.
  bool makes_own_codes(const DeviceMatrix& matrix, const StepShape& shape) const;
  Status enqueue_qkv(const DeviceLayerView& layer, const StepShape& shape);
  Status enqueue_o(int64_t layer, const StepShape& shape, uint16_t* out);
  Status gather_whole_rows(const StepShape& shape, kernels::DeviceQkv* heads);
  Status enqueue_head(const Input& input);
  void enqueue_choice(const StepShape& shape, int64_t first, int64_t count);
  Status enqueue_dense(Module module, const DeviceMlpView& mlp, const Input& input, uint16_t* rows);
  Result<const uint16_t*> enqueue_hidden(Module module, const DeviceMlpView& mlp, const Input& input);
  // Rows of the experts' second product, bf16 or of ranks fp32, and how they are combined.
  struct Bf16Rows {
    int64_t num_tokens = 0;
    const void* rows = nullptr;
    const int32_t* slot = nullptr;
    const float* weight = nullptr;
    float* shared = nullptr;  // room for the shared expert's partial rows
  };
  Status combine_bf16(const DeviceLayerView& layer, const Bf16Rows& from, bool leaves_combine);
  Status combine_bf16_partial(const DeviceLayerView& layer, const Bf16Rows& from);
  const float* enqueue_shared_gate(const DeviceLayerView& layer, int64_t num_tokens);
  // `x` [num_rows, held columns of the matrix]: a sum over the ranks.
  Status enqueue_row_parallel(Module module, const DeviceMatrix& matrix, const moe::DeviceSplitRows& rows,
                              uint16_t* out);
  // What a feed-forward finds and leaves: whether the codes of its input are there beside the bf16 rows, and whether
  // the combine of its experts is left to the next norm (pending_combine_; `update` is then not written).
  struct FeedForwardForm {
    bool has_codes = false;
    bool leaves_combine = false;
    const kernels::DeviceAddNorm* norm = nullptr;  // not null: makes its input, and has not been enqueued
  };
  // Whether the norm in front of a layer's experts is made in the launch of their router.
  bool norms_with_router(const DeviceLayerView& layer, int64_t num_tokens) const;
  // Whether the first product of routed experts takes codes by tokens; else they are quantised by slots.
  bool takes_gathered_codes(const DeviceLayerView& layer, int64_t num_tokens) const;
  static bool feed_forward_takes_codes(const DeviceLayerView& layer);
  Status enqueue_feed_forward(int64_t layer, int64_t num_tokens, const FeedForwardForm& form);
  Status enqueue_bf16_moe(const DeviceLayerView& layer, int64_t num_tokens, const FeedForwardForm& form);
  void enqueue_bf16_product(kernels::DeviceBf16Gemm gemm, const DeviceMatrix& matrix, const uint16_t* x, void* out,
                            int64_t width);
  // The next norm of the stream, in place. `update`: added to the stream first, or null. `quantised`: the codes are
  // wanted, `plain`: the bf16 rows.
  kernels::DeviceAddNorm open_norm(const StepShape& shape, const uint16_t* weight, bool has_update, bool quantised,
                                   bool plain);
  // The norm puts its sums into the other of the two rows, which is the stream from then on.
  void move_stream(kernels::DeviceAddNorm* norm);
  uint16_t* stream_rows() const { return memory_.at<uint16_t>(stream_is_moved_ ? parts_.other_x : parts_.x); }
  void enqueue_norm(const kernels::DeviceAddNorm& norm);
  Status enqueue_linear(const DeviceMatrix& matrix, const Input& input, const Output& output);
  Status enqueue_quantise(Module module, const uint16_t* x, int64_t num_rows, int64_t k, uint8_t* act,
                          float* act_scale);
  kernels::DeviceRouterLogits open_router(const DeviceLayerView& layer, int64_t num_tokens);
  Status enqueue_router(const DeviceLayerView& layer, int64_t num_tokens);
  Status enqueue_bf16_routes(const DeviceLayerView& layer, const kernels::DeviceRouteTokens& route,
                             const kernels::PlanRoutes& plan);
  // device_observe.cpp: nothing where nobody looks.
  Status show_projections(int64_t num_tokens);
  Status show_rows(Module module, const char* name, const uint16_t* rows, int64_t num_rows, int64_t width) const;
  Status show_partial_rows(Module module, const float* rows, int64_t num_rows) const;
  Status show_quantised(Module module, const kernels::QuantizeTokens& input) const;
  Status show_plan(const kernels::PlanRoutes& plan) const;
  Status show_bf16_experts(const kernels::PlanRoutes& plan, const uint16_t* hidden, const void* rows) const;
  Status show_update(Module module, uint16_t* rows, int64_t num_tokens) const;
  Status show_router(int64_t num_tokens) const;
  Status show_moe_block(int64_t num_tokens) const;
  Status show_hidden(const StepShape& shape);
  Status show_final_norm(const uint16_t* rows, int64_t num_rows, StepObserver* observer) const;
  Input normed_input(int64_t num_rows) const;
  const int32_t* ints(int64_t place) const { return block() + place; }

  const ModelConfig& config_;
  const DeviceWeightsView& weights_;
  const kernels::DeviceTable& table_;
  kernels::Numerics numerics_;
  DeviceShard shard_;
  moe::DeviceRanks ranks_;
  StepMemory parts_;
  moe::Workspace memory_;
  DeviceDecoderMemory given_;
  moe::DeviceStreams streams_;
  device::Stream stream_;
  StepObserver* observer_ = nullptr;  // of the layers that are being enqueued
  int64_t layer_ = -1;                // likewise
  bool joins_steps_;
  bool stream_is_moved_ = false;            // the residual stream lies in other_x
  bool update_is_pending_ = false;          // the last feed-forward's rows are not in the stream yet
  kernels::DeviceCombine pending_combine_;  // rows not null: nor are they combined; else they are in `update`
};

}  // namespace quadrille::model
