// SPDX-License-Identifier: Apache-2.0
// The other forms of the device layer: rows that others sent and quantised (masked layout), and one linear layer.
#include "moe/device_check.h"
#include "moe/device_layer.h"
#include "moe/device_steps.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {
namespace {

Status check_masked_batch(const DeviceMoeLayer& layer, const DeviceMaskedBatch& batch) {
  QD_TRY_STATUS(check_pointer(batch.act, 16, "act"));
  QD_TRY_STATUS(check_pointer(batch.act_scale, 4, "activation scales"));
  QD_TRY_STATUS(check_pointer(batch.masked_m, 4, "masked_m"));
  QD_TRY_STATUS(check_pointer(batch.out, 16, "out"));
  return check_mlp_memory(layer.experts, "experts");
}

}  // namespace

Status can_run_masked(const DeviceMoeLayer& layer, int64_t max_m) {
  if (layer.ranks.is_split()) {
    return make_error(ErrorCode::kUnsupported,
                      "the masked layout runs whole experts, found a layer that is split over {} tensor-parallel ranks",
                      layer.ranks.tensor->size());
  }
  QD_TRY_STATUS(check_device_mlp(layer.experts, "experts"));
  if (layer.experts.gate_up.numerics != kernels::Numerics::kExact) {
    return make_error(ErrorCode::kUnsupported,
                      "the masked layout with 1 x 128 activation scales runs with numerics exact, found vllm");
  }
  if (layer.shared) {
    return make_error(
        ErrorCode::kUnsupported,
        "the masked layout runs routed experts alone, found a shared expert: run it as a layer of its own");
  }
  if (layer.experts.hidden % 16 != 0) {
    return make_error(ErrorCode::kUnsupported,
                      "the masked layout needs a hidden size that is a multiple of 16, found {} (next legal: {})",
                      layer.experts.hidden, (layer.experts.hidden + 15) / 16 * 16);
  }
  const int64_t experts = layer.experts.gate_up.num_experts;
  if (max_m >= 0 && max_m <= kMaxRows / experts) return {};
  return make_error(ErrorCode::kInvalidArgument, "expected 0..{} rows for each of {} experts, found {}",
                    kMaxRows / experts, experts, max_m);
}

size_t masked_workspace_bytes(const DeviceMoeLayer& layer, int64_t max_m, const DeviceLayerOptions&) {
  return can_run_masked(layer, max_m) ? plan_masked_parts(layer.experts, max_m).total : 0;
}

Status run_masked_layer(const kernels::DeviceTable& table, const DeviceMoeLayer& layer, const DeviceMaskedBatch& batch,
                        void* workspace, size_t workspace_size, const DeviceStreams& streams, uint32_t* status,
                        const DeviceLayerOptions& options) {
  QD_TRY_STATUS(can_run_masked(layer, batch.max_m));
  const device::Stream stream = streams.main;
  QD_TRY_STATUS(check_streams(streams, false));
  if (batch.max_m == 0) return {};
  QD_TRY_STATUS(check_masked_batch(layer, batch));
  const DeviceMlp& mlp = layer.experts;
  const int64_t experts = mlp.gate_up.num_experts;
  const MaskedParts parts = plan_masked_parts(mlp, batch.max_m);
  const Workspace memory(workspace);
  QD_TRY_STATUS(check_workspace(workspace, workspace_size, parts.total));
  QD_TRY(const GemmConfigs configs, choose_configs(table, mlp, experts * batch.max_m, options, ActScales::k1x128));
  QD_TRY(uint32_t * word, open_status(status, memory, parts.status, stream));

  kernels::TileList lists[2];
  const int64_t tokens[2] = {configs.first_tokens, configs.second_tokens};
  for (int i = 0; i < 2; ++i) {
    if (i == 1 && configs.one_list()) {
      lists[1] = lists[0];
      break;
    }
    auto* tiles = memory.open<kernels::TokenTile>(parts.lists.tiles[i], stream);
    auto* count = memory.open<int32_t>(parts.lists.count[i], stream);
    device::before_step("plan_masked", stream);
    table.plan_masked({experts, batch.max_m, tokens[i], batch.masked_m, tiles, count, word}, stream);
    lists[i].tiles = tiles;
    lists[i].num_tiles = count;
    lists[i].max_tiles = experts * ((batch.max_m + tokens[i] - 1) / tokens[i]);
  }
  const MlpInput input{experts * batch.max_m, batch.act, mlp.hidden, nullptr, batch.act_scale, batch.max_m};
  const MlpCall call{table, mlp, layer.ranks, input, {lists[0], lists[1]}, configs, memory, parts.experts, stream};
  enqueue_up(call);
  enqueue_down(call, nullptr, batch.out);
  return {};
}

Status can_run_linear(const DeviceLinear& linear, int64_t max_rows) {
  QD_TRY_STATUS(check_device_linear(linear, "linear"));
  if (linear.num_experts != 1) {
    return make_error(ErrorCode::kInvalidArgument, "linear: expected one matrix, found {}", linear.num_experts);
  }
  return check_row_count(max_rows, "linear");
}

size_t linear_workspace_bytes(const DeviceLinear& linear, int64_t max_rows) {
  return can_run_linear(linear, max_rows) ? plan_linear_parts(linear, max_rows).total : 0;
}

Status run_device_linear(const kernels::DeviceTable& table, const DeviceLinear& linear, const uint16_t* x,
                         int64_t num_rows, uint16_t* out, void* workspace, size_t workspace_size, device::Stream stream,
                         const DeviceLayerOptions& options) {
  QD_TRY_STATUS(can_run_linear(linear, num_rows));
  QD_TRY_STATUS(device::check_stream(stream));
  if (num_rows == 0) return {};
  QD_TRY_STATUS(check_pointer(x, 16, "x"));
  QD_TRY_STATUS(check_pointer(out, 16, "out"));
  QD_TRY_STATUS(check_linear_memory(linear, "linear"));
  const LinearParts parts = plan_linear_parts(linear, num_rows);
  QD_TRY_STATUS(check_workspace(workspace, workspace_size, parts.total));
  QD_TRY(const int32_t config, choose_config(table, linear, num_rows, options.gemm1_config));

  const Workspace memory(workspace);
  kernels::QuantizeTokens quantize;
  quantize.num_tokens = num_rows;
  quantize.k = linear.k;
  quantize.act_pitch = act_pitch(linear.k);
  quantize.x = x;
  quantize.act = memory.open<uint8_t>(parts.act, stream);
  quantize.act_scale = memory.open<float>(parts.act_scale, stream);
  device::before_step("quantize_tokens", stream);
  table.quantize_tokens(quantize, stream);
  kernels::DeviceW4A8Gemm gemm = gemm_of(linear, single_list(num_rows), config);
  gemm.act = quantize.act;
  gemm.act_rows = num_rows;
  gemm.act_pitch = quantize.act_pitch;
  gemm.act_scale = quantize.act_scale;
  gemm.out = out;
  gemm.out_pitch = linear.n;
  device::before_step("gemm", stream);
  table.w4a8_gemm(gemm, stream);
  return {};
}

}  // namespace quadrille::moe
