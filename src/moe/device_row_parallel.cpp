// SPDX-License-Identifier: Apache-2.0
// The row-parallel linear layer of tensor-parallel ranks on a device (docs/numerics.md section 6), and what a layer
// asks about its ranks.
#include "moe/device_check.h"
#include "moe/device_layer.h"
#include "moe/device_steps.h"
#include "moe/device_watch.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {

bool DeviceRanks::is_split() const {
  return tensor != nullptr && tensor->size() > 1;
}

bool DeviceRanks::agrees_scale() const {
  return is_split() && split_scale == SplitScale::kAgreed;
}

bool DeviceRanks::adds_bias() const {
  return !is_split() || tensor->rank() == 0;
}

Status can_run_row_parallel(const DeviceLinear& linear, int64_t held, int64_t offset, int64_t max_rows) {
  QD_TRY_STATUS(can_run_linear(linear, max_rows));
  if (auto legal = check_columns(held, offset, linear.k); !legal) return legal.error().in("linear");
  return {};
}

size_t row_parallel_workspace_bytes(const DeviceLinear& linear, const DeviceRanks& ranks, int64_t max_rows) {
  return can_run_linear(linear, max_rows) ? plan_linear_parts(linear, max_rows, ranks).total : 0;
}

Status run_row_parallel_linear(const kernels::DeviceTable& table, const DeviceLinear& linear,
                               const DeviceSplitRows& rows, const DeviceRanks& ranks, uint16_t* out, void* workspace,
                               size_t workspace_size, device::Stream stream, const DeviceLayerOptions& options) {
  QD_TRY_STATUS(can_run_row_parallel(linear, rows.held, rows.offset, rows.num_rows));
  QD_TRY_STATUS(device::check_stream(stream));
  if (rows.num_rows == 0) return {};
  QD_TRY_STATUS(check_pointer(rows.x, 16, "x"));
  QD_TRY_STATUS(check_pointer(out, 16, "out"));
  QD_TRY_STATUS(check_linear_memory(linear, "linear"));
  const LinearParts parts = plan_linear_parts(linear, rows.num_rows, ranks);
  QD_TRY_STATUS(check_workspace(workspace, workspace_size, parts.total));
  QD_TRY(const int32_t config, choose_config(table, linear, rows.num_rows, options.gemm1_config));

  const Workspace memory(workspace);
  kernels::QuantizeListed quantize;
  if (ranks.agrees_scale()) {
    auto* absmax = memory.open<float>(parts.absmax, stream);
    device::before_step("row_absmax", stream);
    table.row_absmax({rows.num_rows, rows.held, nullptr, rows.x, absmax}, stream);
    device::before_step("agree_on_absmax", stream);
    QD_TRY_STATUS(ranks.tensor->all_reduce_max(absmax, static_cast<size_t>(rows.num_rows), stream));
    quantize.absmax = absmax;
  }
  quantize.list = single_list(rows.num_rows);
  quantize.k = rows.held;
  quantize.act_pitch = act_pitch(linear.k);
  quantize.x = rows.x;
  quantize.act = memory.open<uint8_t>(parts.act, stream);
  quantize.act_scale = memory.open<float>(parts.act_scale, stream);
  quantize.offset = rows.offset;
  device::before_step("quantize_rows", stream);
  table.quantize_listed(quantize, stream);

  kernels::DeviceW4A8Gemm gemm = gemm_of(linear, quantize.list, config);
  gemm.act = quantize.act;
  gemm.act_rows = rows.num_rows;
  gemm.act_pitch = quantize.act_pitch;
  gemm.act_scale = quantize.act_scale;
  auto* partial = ranks.is_split() ? memory.open<float>(parts.partial, stream) : nullptr;
  gemm.out = partial != nullptr ? static_cast<void*>(partial) : out;
  gemm.out_pitch = linear.n;
  set_row_parallel(ranks, &gemm);
  device::before_step("gemm", stream);
  table.w4a8_gemm(gemm, stream);
  if (options.observer != nullptr) {
    const DeviceWatch watch(options.observer, stream);
    QD_TRY_STATUS(
        watch.quantised("a", "a_scale", quantize.act, quantize.act_pitch, quantize.act_scale, rows.num_rows, linear.k));
    if (partial != nullptr) QD_TRY_STATUS(watch.f32("partial", partial, rows.num_rows, linear.n));
  }
  if (partial == nullptr) return {};
  return enqueue_sum(table, ranks, partial, rows.num_rows * linear.n, out, stream);
}

}  // namespace quadrille::moe
