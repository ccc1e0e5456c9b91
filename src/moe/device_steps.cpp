// SPDX-License-Identifier: Apache-2.0
// Each step tells the harness before it is enqueued, and opens a part of the workspace where its writer comes.
#include "moe/device_steps.h"

#include "core/check.h"
#include "moe/device_watch.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {
namespace {

using kernels::GemmConfig;

bool serves(const GemmConfig& config, ActScales scales) {
  return scales == ActScales::kPerToken || config.block_scales;
}

// The tile with the tokens of `fallback` that is nearest to `chosen`; `fallback` where there is no other.
int32_t with_tokens(std::span<const GemmConfig> configs, int32_t chosen, int32_t fallback, ActScales scales) {
  const int32_t tokens = configs[static_cast<size_t>(fallback)].tokens;
  const int32_t rows = configs[static_cast<size_t>(chosen)].rows;
  for (size_t i = 0; i < configs.size(); ++i) {
    if (configs[i].tokens == tokens && configs[i].rows == rows && serves(configs[i], scales)) {
      return static_cast<int32_t>(i);
    }
  }
  return fallback;
}

// The chosen tile, or the largest of fewer tokens that was compiled for 1 x 128 scales.
int32_t with_block_scales(std::span<const GemmConfig> configs, int32_t chosen) {
  if (configs[static_cast<size_t>(chosen)].block_scales) return chosen;
  int32_t best = -1;
  for (size_t i = 0; i < configs.size(); ++i) {
    if (!configs[i].block_scales || configs[i].tokens > configs[static_cast<size_t>(chosen)].tokens) continue;
    if (best < 0 || configs[i].tokens > configs[static_cast<size_t>(best)].tokens) best = static_cast<int32_t>(i);
  }
  QD_CHECK(best >= 0, "no tile was compiled for 1 x 128 scales");
  return best;
}

}  // namespace

Result<int32_t> choose_config(const kernels::DeviceTable& table, const DeviceLinear& linear, int64_t num_rows,
                              int32_t forced, ActScales scales) {
  const auto configs = table.w4a8_configs();
  if (forced >= static_cast<int32_t>(configs.size()) || forced < -1) {
    return make_error(ErrorCode::kInvalidArgument, "GEMM configuration {}: expected 0..{}, or -1: chosen", forced,
                      configs.size() - 1);
  }
  if (forced >= 0 && !serves(configs[static_cast<size_t>(forced)], scales)) {
    return make_error(ErrorCode::kUnsupported,
                      "GEMM configuration {} ({}) was not compiled for 1 x 128 activation scales: choose one of fewer "
                      "tokens",
                      forced, configs[static_cast<size_t>(forced)].name);
  }
  int32_t config = forced;
  if (forced < 0) {
    config = table.choose_w4a8(linear.n, linear.k, linear.num_experts, num_rows, linear.numerics, linear.group_size);
    QD_CHECK(config >= 0 && config < static_cast<int32_t>(configs.size()), "a choice outside of the closed list");
    if (scales == ActScales::k1x128) config = with_block_scales(configs, config);
  }
  QD_CHECK(configs[static_cast<size_t>(config)].tokens >= kMinTileTokens, "tile lists are planned for larger tiles");
  return config;
}

Result<GemmConfigs> choose_configs(const kernels::DeviceTable& table, const DeviceMlp& mlp, int64_t num_rows,
                                   const DeviceLayerOptions& options, ActScales scales) {
  const auto configs = table.w4a8_configs();
  const auto tokens = [&](int32_t config) { return configs[static_cast<size_t>(config)].tokens; };
  GemmConfigs out;
  QD_TRY(out.first, choose_config(table, mlp.gate_up, num_rows, options.gemm1_config, scales));
  QD_TRY(out.second, choose_config(table, mlp.down, num_rows, options.gemm2_config));
  if (tokens(out.first) != tokens(out.second)) {
    if (options.gemm2_config < 0) {
      out.second = with_tokens(configs, out.second, out.first, ActScales::kPerToken);
    } else if (options.gemm1_config < 0 && serves(configs[static_cast<size_t>(out.second)], scales)) {
      out.first = with_tokens(configs, out.first, out.second, scales);
    }
  }
  out.first_tokens = tokens(out.first);
  out.second_tokens = tokens(out.second);
  return out;
}

bool has_small_tile(const kernels::DeviceTable& table, const DeviceLinear& linear, int64_t num_rows) {
  const Result<int32_t> config = choose_config(table, linear, num_rows, -1);
  return config && table.w4a8_configs()[static_cast<size_t>(*config)].tokens == kMinTileTokens;
}

kernels::TileList single_list(int64_t num_rows) {
  kernels::TileList list;
  list.num_rows = num_rows;
  return list;
}

kernels::DeviceW4A8Gemm gemm_of(const DeviceLinear& linear, const kernels::TileList& list, int32_t config) {
  kernels::DeviceW4A8Gemm gemm;
  gemm.numerics = linear.numerics;
  gemm.n = linear.n;
  gemm.k = linear.k;
  gemm.group_size = linear.group_size;
  gemm.num_experts = linear.num_experts;
  gemm.list = list;
  gemm.weights = linear.weights;
  gemm.expert_stride = linear.expert_stride;
  gemm.channel_scale = linear.channel_scale;
  gemm.bias = linear.bias;
  gemm.config = config;
  return gemm;
}

namespace {

// The rows of GEMM2 lie over `hidden`.
const Part& hidden_of(const MlpCall& call) {
  return call.quantises_in_down ? call.parts.few_hidden : call.parts.hidden;
}

}  // namespace

void enqueue_up(const MlpCall& call, float* absmax, const int32_t* num_rows_there) {
  const DeviceMlp& mlp = call.mlp;
  auto* hidden = call.workspace.open<uint16_t>(hidden_of(call), call.stream);
  kernels::DeviceW4A8Gemm first = gemm_of(mlp.gate_up, call.lists[0], call.configs.first);
  first.act = call.input.act;
  first.act_rows = call.input.num_rows;
  first.act_pitch = call.input.pitch;
  first.act_scale = call.input.scale;
  first.block_scale = call.input.block_scale;
  first.block_max_m = call.input.block_max_m;
  first.source_row = call.input.source_row;
  first.source_divisor = call.input.source_divisor;
  first.output = kernels::GemmOutput::kActivated;
  first.activation = mlp.activation;
  first.out = hidden;
  first.out_pitch = mlp.width;
  first.list_is_older = call.list_is_older;
  device::before_step("gemm1", call.stream);
  call.table.w4a8_gemm(first, call.stream);
  if (absmax != nullptr) {
    device::before_step("row_absmax", call.stream);
    call.table.row_absmax({call.input.num_rows, mlp.width, num_rows_there, hidden, absmax}, call.stream);
  }
  if (call.watch != nullptr) call.watch->up(call);
}

namespace {

// The codes of the rows of h.
void enqueue_codes(const MlpCall& call, const float* absmax, kernels::DeviceW4A8Gemm* second) {
  kernels::QuantizeListed quantize;
  quantize.list = call.lists[0];
  quantize.k = call.mlp.width;
  quantize.act_pitch = act_pitch(call.mlp.down.k);
  quantize.x = call.workspace.at<uint16_t>(hidden_of(call));
  quantize.act = call.workspace.open<uint8_t>(call.parts.second, call.stream);
  quantize.act_scale = call.workspace.open<float>(call.parts.second_scale, call.stream);
  quantize.offset = call.mlp.down_offset;
  quantize.absmax = absmax;
  quantize.list_is_older = true;  // the first product read it
  device::before_step("quantize_hidden", call.stream);
  call.table.quantize_listed(quantize, call.stream);
  second->act = quantize.act;
  second->act_pitch = quantize.act_pitch;
  second->act_scale = quantize.act_scale;
}

}  // namespace

void* enqueue_down(const MlpCall& call, const float* absmax, void* rows) {
  const DeviceMlp& mlp = call.mlp;
  const device::Stream stream = call.stream;
  kernels::DeviceW4A8Gemm second = gemm_of(mlp.down, call.lists[1], call.configs.second);
  second.act_rows = call.input.num_rows;
  if (call.quantises_in_down) {
    second.x = call.workspace.at<uint16_t>(hidden_of(call));
  } else {
    enqueue_codes(call, absmax, &second);
  }
  void* out = rows != nullptr ? rows : call.workspace.open<uint16_t>(call.parts.rows, stream);
  second.out = out;
  second.out_pitch = mlp.hidden;
  second.list_is_older = true;
  set_row_parallel(call.ranks, &second);
  device::before_step("gemm2", stream);
  call.table.w4a8_gemm(second, stream);
  if (call.watch != nullptr) call.watch->down(call, out);
  return out;
}

void set_row_parallel(const DeviceRanks& ranks, kernels::DeviceW4A8Gemm* gemm) {
  if (!ranks.is_split()) return;
  gemm->output = kernels::GemmOutput::kRowsF32;
  if (!ranks.adds_bias()) gemm->bias = nullptr;
}

Status enqueue_sum(const kernels::DeviceTable& table, const DeviceRanks& ranks, float* x, int64_t count, uint16_t* out,
                   device::Stream stream) {
  device::before_step("sum_over_ranks", stream);
  QD_TRY_STATUS(ranks.tensor->all_reduce_sum(x, static_cast<size_t>(count), stream));
  device::before_step("round_sum", stream);
  table.round_to_bf16({count, x, out}, stream);
  return {};
}

Result<uint32_t*> open_status(uint32_t* status, const Workspace& workspace, const Part& part, device::Stream stream) {
  if (status != nullptr) return status;
  auto* own = workspace.open<uint32_t>(part, stream);
  device::before_step("clear_status", stream);
  QD_TRY_STATUS(device::fill(own, 0, part.bytes, stream));
  return own;
}

}  // namespace quadrille::moe
