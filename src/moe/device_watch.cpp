// SPDX-License-Identifier: Apache-2.0
#include "moe/device_watch.h"

#include <cstring>
#include <utility>

#include "device/device.h"
#include "moe/device_call.h"
#include "moe/device_workspace.h"
#include "numerics/bf16.h"

namespace quadrille::moe {
namespace {

// Rows of `width` bytes out of rows of `pitch`.
std::vector<std::byte> without_padding(const std::vector<std::byte>& from, int64_t num_rows, int64_t width,
                                       int64_t pitch) {
  std::vector<std::byte> out(static_cast<size_t>(num_rows * width));
  for (int64_t r = 0; r < num_rows && width > 0; ++r) {
    std::memcpy(out.data() + r * width, from.data() + r * pitch, static_cast<size_t>(width));
  }
  return out;
}

Result<std::vector<std::byte>> read_codes(const uint8_t* act, int64_t num_rows, int64_t k, int64_t pitch,
                                          device::Stream stream) {
  QD_TRY(const std::vector<std::byte> rows, read_bytes(act, static_cast<size_t>(num_rows * pitch), stream));
  return without_padding(rows, num_rows, k, pitch);
}

}  // namespace

Result<std::vector<std::byte>> read_bytes(const void* from, size_t bytes, device::Stream stream) {
  std::vector<std::byte> to(bytes);
  if (bytes == 0) return to;
  QD_TRY_STATUS(device::copy_to_host(to.data(), from, bytes, stream));
  QD_TRY_STATUS(device::synchronize(stream));
  return to;
}

Result<std::vector<float>> read_f32(const float* x, int64_t count, device::Stream stream) {
  std::vector<float> to(static_cast<size_t>(count));
  QD_TRY(const auto bytes, read_bytes(x, to.size() * sizeof(float), stream));
  if (!bytes.empty()) std::memcpy(to.data(), bytes.data(), bytes.size());
  return to;
}

Result<std::vector<int32_t>> read_i32(const int32_t* x, int64_t count, device::Stream stream) {
  std::vector<int32_t> to(static_cast<size_t>(count));
  QD_TRY(const auto bytes, read_bytes(x, to.size() * sizeof(int32_t), stream));
  if (!bytes.empty()) std::memcpy(to.data(), bytes.data(), bytes.size());
  return to;
}

Result<std::vector<float>> read_bf16(const uint16_t* rows, int64_t num_rows, int64_t width, int64_t pitch,
                                     device::Stream stream) {
  std::vector<float> values;
  if (num_rows == 0) return values;
  // The last row ends with its values.
  const auto count = static_cast<size_t>((num_rows - 1) * pitch + width);
  QD_TRY(const auto bytes, read_bytes(rows, count * sizeof(uint16_t), stream));
  values.reserve(static_cast<size_t>(num_rows * width));
  for (int64_t r = 0; r < num_rows; ++r) {
    for (int64_t i = 0; i < width; ++i) {
      uint16_t code;
      std::memcpy(&code, bytes.data() + 2 * (r * pitch + i), sizeof code);
      values.push_back(numerics::bf16_to_f32(code));
    }
  }
  return values;
}

Status DeviceWatch::bf16(const char* name, const uint16_t* rows, int64_t num_rows, int64_t width, int64_t pitch) const {
  if (observer_ == nullptr) return {};
  QD_TRY(const std::vector<float> values, read_bf16(rows, num_rows, width, pitch, stream_));
  observer_->stage({name, StageType::kBf16InF32, {num_rows, width}, values.data()});
  return {};
}

Status DeviceWatch::f32(const char* name, const float* rows, int64_t num_rows, int64_t width) const {
  if (observer_ == nullptr) return {};
  QD_TRY(const std::vector<float> values, read_f32(rows, num_rows * width, stream_));
  observer_->stage({name, StageType::kF32, {num_rows, width}, values.data()});
  return {};
}

Status DeviceWatch::quantised(const char* name, const char* scale_name, const uint8_t* act, int64_t pitch,
                              const float* scale, int64_t num_rows, int64_t k) const {
  if (observer_ == nullptr) return {};
  QD_TRY(const std::vector<std::byte> codes, read_codes(act, num_rows, k, pitch, stream_));
  QD_TRY(const std::vector<float> scales, read_f32(scale, num_rows, stream_));
  observer_->stage({name, StageType::kE4M3, {num_rows, k}, codes.data()});
  observer_->stage({scale_name, StageType::kF32, {num_rows, 1}, scales.data()});
  return {};
}

void DeviceLayerWatch::up(const MlpCall& mlp) {
  if (!failed_) return;
  failed_ = see_up(mlp, mlp.is_shared ? &shared_ : &routed_);
}

void DeviceLayerWatch::down(const MlpCall& mlp, const void* rows) {
  if (!failed_) return;
  failed_ = see_down(mlp, rows, mlp.is_shared ? &shared_ : &routed_);
}

Status DeviceLayerWatch::see_up(const MlpCall& mlp, Seen* seen) const {
  seen->num_rows = mlp.input.num_rows;
  seen->k = mlp.mlp.hidden;
  seen->width = mlp.mlp.width;
  seen->down_k = mlp.mlp.down.k;
  if (!mlp.is_shared) {
    QD_TRY(seen->codes[0], read_codes(mlp.input.act, seen->num_rows, seen->k, mlp.input.pitch, mlp.stream));
    QD_TRY(seen->scales[0], read_f32(mlp.input.scale, seen->num_rows, mlp.stream));
  }
  const auto* hidden = mlp.workspace.at<uint16_t>(mlp.parts.hidden);
  QD_TRY(seen->hidden, read_bf16(hidden, seen->num_rows, seen->width, seen->width, mlp.stream));
  return {};
}

Status DeviceLayerWatch::see_down(const MlpCall& mlp, const void* rows, Seen* seen) const {
  const auto* codes = mlp.workspace.at<uint8_t>(mlp.parts.second);
  QD_TRY(seen->codes[1], read_codes(codes, seen->num_rows, seen->down_k, act_pitch(seen->down_k), mlp.stream));
  QD_TRY(seen->scales[1], read_f32(mlp.workspace.at<float>(mlp.parts.second_scale), seen->num_rows, mlp.stream));
  if (mlp.ranks.is_split()) {
    QD_TRY(seen->rows, read_f32(static_cast<const float*>(rows), seen->num_rows * seen->k, mlp.stream));
  } else {
    QD_TRY(seen->rows, read_bf16(static_cast<const uint16_t*>(rows), seen->num_rows, seen->k, seen->k, mlp.stream));
  }
  return {};
}

Status DeviceLayerWatch::tell(const DeviceCall& call) {
  QD_TRY_STATUS(failed_);
  const device::Stream stream = call.streams.main;
  const int64_t tokens = call.batch.num_tokens, top_k = call.layer.rule.top_k;
  const int64_t experts = call.layer.experts.gate_up.num_experts;
  QD_TRY(const auto first, read_i32(call.workspace.at<int32_t>(call.parts.offsets), experts + 1, stream));
  QD_TRY(const auto slots, read_i32(call.workspace.at<int32_t>(call.parts.slot_of_route), tokens * top_k, stream));
  QD_TRY(const auto routes, read_i32(call.workspace.at<int32_t>(call.parts.route_of_slot), tokens * top_k, stream));
  const std::vector<int64_t> offsets(first.begin(), first.end());
  tell_one({"expert_first_token_offset", StageType::kI64, {experts + 1}, offsets.data()}, false);
  tell_one({"inv_permuted_idx", StageType::kI32, {tokens, top_k}, slots.data()}, false);
  tell_one({"permuted_idx", StageType::kI32, {tokens * top_k}, routes.data()}, false);
  const bool is_partial = call.layer.ranks.is_split();
  tell_mlp(routed_, false, is_partial);
  tell_input(routed_, call, slots);
  if (call.layer.shared) tell_mlp(shared_, true, is_partial);
  const int64_t width = call.layer.experts.hidden;
  return DeviceWatch(observer_, stream).bf16("out", call.batch.out, tokens, width, width);
}

void DeviceLayerWatch::tell_mlp(const Seen& seen, bool is_shared, bool is_partial) const {
  const StageType rows = is_partial ? StageType::kF32 : StageType::kBf16InF32;
  tell_one({"act", StageType::kBf16InF32, {seen.num_rows, seen.width}, seen.hidden.data()}, is_shared);
  tell_one({"a2", StageType::kE4M3, {seen.num_rows, seen.down_k}, seen.codes[1].data()}, is_shared);
  tell_one({"a2_scale", StageType::kF32, {seen.num_rows, 1}, seen.scales[1].data()}, is_shared);
  tell_one({"gemm2_out", rows, {seen.num_rows, seen.k}, seen.rows.data()}, is_shared);
}

// A token's codes stand in each of its slots: once a token, unless the router's weight is in them.
void DeviceLayerWatch::tell_input(const Seen& seen, const DeviceCall& call,
                                  const std::vector<int32_t>& slot_of_route) const {
  const int64_t top_k = call.layer.rule.top_k;
  const bool by_slot = call.layer.rule.weight_on_input;
  const int64_t rows = by_slot ? seen.num_rows : call.batch.num_tokens;
  std::vector<std::byte> codes(static_cast<size_t>(rows * seen.k));
  std::vector<float> scales(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t slot = by_slot ? r : slot_of_route[static_cast<size_t>(r * top_k)];
    std::memcpy(codes.data() + r * seen.k, seen.codes[0].data() + slot * seen.k, static_cast<size_t>(seen.k));
    scales[static_cast<size_t>(r)] = seen.scales[0][static_cast<size_t>(slot)];
  }
  tell_one({"a1", StageType::kE4M3, {rows, seen.k}, codes.data()}, false);
  tell_one({"a1_scale", StageType::kF32, {rows, 1}, scales.data()}, false);
}

}  // namespace quadrille::moe
