// SPDX-License-Identifier: Apache-2.0
// Each check names what was expected, what was found and what would be legal.
#include "moe/device_check.h"

#include <cmath>

#include "kernels/api/table.h"

namespace quadrille::moe {
namespace {

Status check_numerics(kernels::Numerics numerics, const char* name) {
  if (numerics == kernels::Numerics::kExact || numerics == kernels::Numerics::kVllm) return {};
  return make_error(ErrorCode::kUnsupported, "{}: numerics {} is not supported: legal are exact and vllm", name,
                    static_cast<int>(numerics));
}

Status check_activation(const kernels::ActivationRule& rule, const char* name) {
  const auto kind = static_cast<int32_t>(rule.kind);
  if (kind < 0 || kind > static_cast<int32_t>(kernels::Activation::kRelu2)) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: activation {} is not supported: legal are silu, clamped swiglu, gelu tanh and relu2", name,
                      kind);
  }
  if (rule.kind != kernels::Activation::kClampedSwiglu) return {};
  if (rule.limit > 0 && std::isfinite(rule.alpha) && std::isfinite(rule.up_offset)) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "{}: clamped swiglu needs a limit above 0 (infinity: none) and finite alpha and offset, found "
                    "limit {}, alpha {}, offset {}",
                    name, rule.limit, rule.alpha, rule.up_offset);
}

Status expect_shape(const DeviceLinear& linear, const char* name, const char* part, int64_t num_experts, int64_t n,
                    int64_t k) {
  if (linear.num_experts == num_experts && linear.n == n && linear.k == k) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: {}: expected {} matrices [{}, {}], found {} matrices [{}, {}]",
                    name, part, num_experts, n, k, linear.num_experts, linear.n, linear.k);
}

}  // namespace

Status check_device_linear(const DeviceLinear& linear, const char* name) {
  QD_TRY_STATUS(check_numerics(linear.numerics, name));
  if (linear.num_experts < 1) {
    return make_error(ErrorCode::kInvalidArgument, "{}: expected at least one expert, found {}", name,
                      linear.num_experts);
  }
  if (auto legal = kernels::check_w4a8_shape(linear.n, linear.k, linear.group_size); !legal) {
    return legal.error().in(name);
  }
  if (linear.n <= kMaxFeatures && linear.k <= kMaxFeatures) return {};
  return make_error(ErrorCode::kUnsupported, "{}: expected at most {} features, found a matrix [{}, {}]", name,
                    kMaxFeatures, linear.n, linear.k);
}

Status check_device_mlp(const DeviceMlp& mlp, const char* name, bool is_split) {
  QD_TRY_STATUS(check_activation(mlp.activation, name));
  if (mlp.width <= 0 || mlp.width % 8 != 0 || mlp.width > kMaxFeatures) {
    return make_error(ErrorCode::kUnsupported, "{}: expected a width that is a multiple of 8, found {}", name,
                      mlp.width);
  }
  const int64_t columns = mlp.activation.gated() ? 2 * mlp.width : mlp.width;
  const int64_t num_experts = mlp.gate_up.num_experts;
  QD_TRY_STATUS(expect_shape(mlp.gate_up, name, "gate_up", num_experts, columns, mlp.hidden));
  QD_TRY_STATUS(expect_shape(mlp.down, name, "down", num_experts, mlp.hidden, is_split ? mlp.down.k : mlp.width));
  if (auto legal = check_columns(mlp.width, mlp.down_offset, mlp.down.k); !legal) {
    return legal.error().in("down").in(name);
  }
  if (auto legal = check_device_linear(mlp.gate_up, "gate_up"); !legal) return legal.error().in(name);
  if (auto legal = check_device_linear(mlp.down, "down"); !legal) return legal.error().in(name);
  if (mlp.gate_up.numerics == mlp.down.numerics) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "{}: gate_up and down have different numerics: prepare both as exact or both as vllm", name);
}

Status check_columns(int64_t held, int64_t offset, int64_t k) {
  if (held <= 0 || held % 8 != 0 || offset < 0 || offset % 8 != 0) {
    return make_error(ErrorCode::kUnsupported,
                      "a rank's columns begin and end at multiples of 8, found {} columns from {} on", held, offset);
  }
  if (offset <= k - held) return {};
  return make_error(ErrorCode::kInvalidArgument, "{} columns from {} on do not fit into a row of {}", held, offset, k);
}

Status check_row_count(int64_t rows, const char* what) {
  if (rows >= 0 && rows <= kMaxRows) return {};
  return make_error(ErrorCode::kInvalidArgument, "{}: expected 0..{} rows in one call, found {}", what, kMaxRows, rows);
}

Status check_pointer(const void* pointer, uintptr_t alignment, const char* name) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (pointer != nullptr && address % alignment == 0) return {};
  if (pointer == nullptr) return make_error(ErrorCode::kInvalidArgument, "{}: a null pointer", name);
  return make_error(ErrorCode::kInvalidArgument, "{}: expected an address that is a multiple of {}, found {:#x}", name,
                    alignment, address);
}

Status check_linear_memory(const DeviceLinear& linear, const char* name) {
  const bool vllm = linear.numerics == kernels::Numerics::kVllm;
  const layout::W4Hopper64 map{linear.n, linear.k, linear.group_size, vllm};
  const auto within = [name](Status status) { return status ? status : Status(status.error().in(name)); };
  QD_TRY_STATUS(within(check_pointer(linear.weights, 128, "weights")));
  if (linear.expert_stride < map.num_bytes() || linear.expert_stride % 128 != 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: expected an expert stride of at least {} bytes and a multiple of 128, found {}", name,
                      map.num_bytes(), linear.expert_stride);
  }
  if (vllm) QD_TRY_STATUS(within(check_pointer(linear.channel_scale, 4, "channel scales")));
  if (linear.bias != nullptr) QD_TRY_STATUS(within(check_pointer(linear.bias, 4, "bias")));
  return {};
}

Status check_mlp_memory(const DeviceMlp& mlp, const char* name) {
  if (auto legal = check_linear_memory(mlp.gate_up, "gate_up"); !legal) return legal.error().in(name);
  if (auto legal = check_linear_memory(mlp.down, "down"); !legal) return legal.error().in(name);
  return {};
}

Status check_workspace(const void* workspace, size_t size, size_t needed) {
  if (size < needed) {
    return make_error(ErrorCode::kCapacity, "workspace: expected at least {} bytes, found {}", needed, size);
  }
  return check_pointer(workspace, 256, "workspace");
}

Status check_streams(const DeviceStreams& streams, bool has_shared) {
  if (auto legal = device::check_stream(streams.main); !legal) return legal.error().in("main stream");
  if (!has_shared || streams.side.handle == nullptr) return {};
  if (auto legal = device::check_stream(streams.side); !legal) return legal.error().in("side stream");
  if (streams.shared_begins.handle != nullptr && streams.shared_ends.handle != nullptr &&
      streams.shared_begins.handle != streams.shared_ends.handle) {
    return {};
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "a layer with a shared expert and a side stream needs two events, shared_begins and shared_ends");
}

}  // namespace quadrille::moe
