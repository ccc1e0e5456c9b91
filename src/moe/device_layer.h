// SPDX-License-Identifier: Apache-2.0
// The MoE layer on a device: route, plan, quantise, GEMM1 with activation, quantise, GEMM2, combine, enqueued on the
// caller's stream without a host read-back, so that a call can be captured into a graph. Same bits as run_layer() with
// the table `hopper`. Called by src/api, the command line's `layer` and later the decoder.
#pragma once

#include <cstdint>
#include <optional>

#include "core/result.h"
#include "device/device.h"
#include "device/order.h"
#include "kernels/api/device_table.h"
#include "moe/router.h"

namespace quadrille::moe {

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

// gate_up: n = 2 * width, rows interleaved eight and eight (n = width where the activation is not gated).
struct DeviceMlp {
  int64_t hidden = 0;
  int64_t width = 0;
  kernels::ActivationRule activation;
  DeviceLinear gate_up, down;
};

struct DeviceMoeLayer {
  RouterRule rule;                               // num_experts: of the router, that is before the expert map
  const float* correction_bias = nullptr;        // device [rule.num_experts] or null
  DeviceMlp experts;                             // the experts that are here
  const int32_t* expert_map = nullptr;           // device [rule.num_experts] -> expert here or -1; null: all are here
  std::optional<DeviceMlp> shared;               // one expert as wide as all shared experts together
  const uint16_t* shared_gate_weight = nullptr;  // device [hidden] bf16: sigmoid gate; null: 1
};

// Forced choices, for tests and measurements; -1: chosen from the shape.
struct DeviceLayerOptions {
  int32_t gemm1_config = -1, gemm2_config = -1;
};

// One call's tensors, all on the device.
struct DeviceBatch {
  int64_t num_tokens = 0;
  const uint16_t* x = nullptr;           // [num_tokens, hidden] bf16, 16-byte aligned
  const float* router_logits = nullptr;  // [num_tokens, rule.num_experts]; or, where null:
  const int32_t* topk_ids = nullptr;     // [num_tokens, top_k] experts of the router, -1: nowhere
  const float* topk_weights = nullptr;   // [num_tokens, top_k]
  uint16_t* out = nullptr;               // [num_tokens, hidden] bf16
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
// ones; without `side` it runs on `main`.
struct DeviceStreams {
  device::Stream main;
  device::Stream side;
  device::Event shared_begins, shared_ends;
};

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

}  // namespace quadrille::moe
