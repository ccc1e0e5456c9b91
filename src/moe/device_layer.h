// SPDX-License-Identifier: Apache-2.0
// The MoE layer on a device: route, plan, quantise, GEMM1 with activation, quantise, GEMM2, combine, enqueued on the
// caller's stream without a host read-back, so that a call can be captured into a graph. Same bits as run_layer() with
// the table `hopper`, with tensor-parallel ranks, too. Called by src/api, the command line's `layer` and the decoder.
#pragma once

#include <cstdint>
#include <optional>

#include "core/result.h"
#include "device/device.h"
#include "device/order.h"
#include "kernels/api/device_table.h"
#include "moe/linear.h"
#include "moe/router.h"

namespace quadrille::parallel {
class DeviceCommunicator;
}

namespace quadrille::moe {

class LayerObserver;

// `num_experts` matrices of one shape in layout/w4_hopper64.h. Views; whoever prepared them owns them.
struct DeviceLinear {
  int64_t num_experts = 1;
  int64_t n = 0, k = 0;
  int64_t group_size = 0;  // 32, 64, 128; 0: one scale a channel
  kernels::Numerics numerics = kernels::Numerics::kExact;
  const uint8_t* weights = nullptr;
  int64_t expert_stride = 0;
  const float* channel_scale = nullptr;  // vllm: [num_experts, padded_n]
  const float* bias = nullptr;           // [num_experts, padded_n] prepared row order, or null
};

// gate_up: n = 2 * width, rows interleaved eight and eight (n = width where the activation is not gated). Of a
// tensor-parallel shard `width` is what this rank holds, and a row of down's input has down_offset zeros (a multiple of
// 8), the width values, and zeros up to down.k.
struct DeviceMlp {
  int64_t hidden = 0;
  int64_t width = 0;
  kernels::ActivationRule activation;
  DeviceLinear gate_up, down;
  int64_t down_offset = 0;
};

// The ranks that share a layer; each calls it with the same rows and routes. Null or of size 1: nobody else.
struct DeviceRanks {
  // The ranks that hold the other columns of row-parallel matrices (docs/numerics.md section 6). Its collectives run on
  // the main stream. A first call before any capture lets it connect.
  parallel::DeviceCommunicator* tensor = nullptr;
  parallel::DeviceCommunicator* expert = nullptr;  // the ranks that hold the other experts
  SplitScale split_scale = SplitScale::kAgreed;    // of rows that are split over `tensor`

  bool is_split() const;      // more than one tensor rank
  bool agrees_scale() const;  // and they exchange the absmax of split rows
  bool adds_bias() const;     // of row-parallel layers: rank 0 does
};

struct DeviceMoeLayer {
  RouterRule rule;                               // num_experts: of the router, that is before the expert map
  const float* correction_bias = nullptr;        // device [rule.num_experts] or null
  DeviceMlp experts;                             // the experts that are here
  const int32_t* expert_map = nullptr;           // device [rule.num_experts] -> expert here or -1; null: all are here
  std::optional<DeviceMlp> shared;               // one expert as wide as all shared experts together
  const uint16_t* shared_gate_weight = nullptr;  // device [hidden] bf16: sigmoid gate; null: 1
  DeviceRanks ranks;
};

// For tests and measurements: forced choices (-1: chosen from the shape), and who looks on.
struct DeviceLayerOptions {
  int32_t gemm1_config = -1, gemm2_config = -1;
  // Shown the stages of the routed form without an expert map (all of layer_observer.h but gemm1_out) and of the
  // row-parallel layer (a, a_scale, of ranks partial): each look waits for its stream, so not in a capture.
  LayerObserver* observer = nullptr;
  // Steps of few tokens: products make their codes themselves where they can. false: a launch a step, the same bits.
  bool joins_steps = true;
};

// One call's tensors, all on the device. Routes come as router logits, as ids and weights, or as the router's weight,
// by which the layer makes the logits itself (few tokens: in the launch that also chooses and plans).
struct DeviceBatch {
  int64_t num_tokens = 0;
  const uint16_t* x = nullptr;              // [num_tokens, hidden] bf16, 16-byte aligned
  const float* router_logits = nullptr;     // [num_tokens, rule.num_experts]; or, where null:
  const int32_t* topk_ids = nullptr;        // [num_tokens, top_k] experts of the router, -1: nowhere
  const float* topk_weights = nullptr;      // [num_tokens, top_k]
  uint16_t* out = nullptr;                  // [num_tokens, hidden] bf16
  const uint16_t* router_weight = nullptr;  // [rule.num_experts, hidden] bf16, best on 16 bytes; needs the next two:
  float* router_logits_out = nullptr;       // out [num_tokens, rule.num_experts]
  uint32_t* arrivals = nullptr;  // [kernels::kNormAndRouteWords] 0 before a call and behind it, of no other in flight
  // x as codes with their scales (the bytes of quantize_tokens), where the caller has them; or null.
  const uint8_t* act = nullptr;      // [num_tokens, hidden rounded up to 128] e4m3, zeros behind the row
  const float* act_scale = nullptr;  // [num_tokens]
  // Not null: x is not made yet, it is what this norm writes, and act, where that is not null; the layer enqueues it,
  // of few tokens in the launch that also chooses and plans. Its update is bf16 and its sums go to x_out.
  const kernels::DeviceAddNorm* norm = nullptr;
  // Not null: the combine is the caller's (DeviceAddNorm::combine), who finds its problem here. What it reads stays
  // until the next call with this workspace; `out` is not written. Not with tensor-parallel ranks.
  kernels::DeviceCombine* combine = nullptr;
};

// Rows that were sent here by others, already quantised: expert e has rows [0, masked_m[e]) of its max_m.
struct DeviceMaskedBatch {
  int64_t max_m = 0;
  const uint8_t* act = nullptr;       // [experts, max_m, hidden] e4m3; hidden a multiple of 16, 16-byte aligned
  const float* act_scale = nullptr;   // [experts, ceil(hidden / 128), max_m] 1 x 128 scales
  const int32_t* masked_m = nullptr;  // [experts]
  uint16_t* out = nullptr;            // [experts, max_m, hidden] bf16: GEMM2 rows; rows behind masked_m stay untouched
};

// Where a call runs. `side` and the events are needed where the layer has a shared expert, which runs beside the routed
// ones; without `side` it runs on `main`. With tensor-parallel ranks each event is used twice in a call.
struct DeviceStreams {
  device::Stream main;
  device::Stream side;
  device::Event shared_begins, shared_ends;
};

// The router's choice as the backend is asked for it: everything but its pointers.
kernels::DeviceRouteTokens route_problem(const RouterRule& rule, int64_t num_tokens);

// Empty Status when the layer can run with up to max_tokens tokens; else a typed error that names the rule, what was
// found and the legal values. Asks no device.
Status can_run(const DeviceMoeLayer& layer, int64_t max_tokens);
Status can_run_masked(const DeviceMoeLayer& layer, int64_t max_m);

// Bytes of device memory that a call with up to max_tokens needs, 256-byte aligned parts.
size_t workspace_bytes(const DeviceMoeLayer& layer, int64_t max_tokens, const DeviceLayerOptions& options = {});
size_t masked_workspace_bytes(const DeviceMoeLayer& layer, int64_t max_m, const DeviceLayerOptions& options = {});

// Enqueues the layer. Never allocates, never synchronises. `workspace`: workspace_bytes() of at least these tokens,
// 256-byte aligned, not used by another call in flight. `status`: device word of kernels::StatusBit, or null.
// Zero tokens enqueue nothing. Errors: those of can_run, null pointers, misalignment: before any work.
Status run_device_layer(const kernels::DeviceTable& table, const DeviceMoeLayer& layer, const DeviceBatch& batch,
                        void* workspace, size_t workspace_size, const DeviceStreams& streams, uint32_t* status,
                        const DeviceLayerOptions& options = {});
Status run_masked_layer(const kernels::DeviceTable& table, const DeviceMoeLayer& layer, const DeviceMaskedBatch& batch,
                        void* workspace, size_t workspace_size, const DeviceStreams& streams, uint32_t* status,
                        const DeviceLayerOptions& options = {});

// One W4A8 linear layer: out [num_rows, n] = bf16(W * E4(x)) (+ bias); the same kernel with one expert.
Status can_run_linear(const DeviceLinear& linear, int64_t max_rows);
size_t linear_workspace_bytes(const DeviceLinear& linear, int64_t max_rows);
Status run_device_linear(const kernels::DeviceTable& table, const DeviceLinear& linear, const uint16_t* x,
                         int64_t num_rows, uint16_t* out, void* workspace, size_t workspace_size, device::Stream stream,
                         const DeviceLayerOptions& options = {});

// The input of a row-parallel linear layer (o_proj, a down) as this rank has it: in a row of the rank's matrix `offset`
// zeros (a multiple of 8) stand before the `held` columns, and zeros behind them up to k.
struct DeviceSplitRows {
  const uint16_t* x = nullptr;  // [num_rows, held] bf16, 16-byte aligned
  int64_t num_rows = 0;
  int64_t held = 0;
  int64_t offset = 0;
};

// apply_row_parallel() on the device: out [num_rows, n] bf16, complete on every rank, each of which calls it with the
// same num_rows. One scale a row as ranks.split_scale says, the bias from rank 0, partial rows in fp32 added in rank
// order, one rounding. Alone it is run_device_linear() over rows with these zeros. Never allocates or synchronises;
// collectives are enqueued on `stream`. No rows: nothing, and no collective.
Status can_run_row_parallel(const DeviceLinear& linear, int64_t held, int64_t offset, int64_t max_rows);
size_t row_parallel_workspace_bytes(const DeviceLinear& linear, const DeviceRanks& ranks, int64_t max_rows);
Status run_row_parallel_linear(const kernels::DeviceTable& table, const DeviceLinear& linear,
                               const DeviceSplitRows& rows, const DeviceRanks& ranks, uint16_t* out, void* workspace,
                               size_t workspace_size, device::Stream stream, const DeviceLayerOptions& options = {});

}  // namespace quadrille::moe
