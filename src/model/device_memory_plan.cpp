// SPDX-License-Identifier: Apache-2.0
// The sum and its error.
#include "model/device_memory_plan.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace quadrille::model {
namespace {

Error bad_limit(const std::string& text) {
  return make_error(ErrorCode::kInvalidArgument,
                    "--gpu-memory '{}': expected bytes (20000000000, 20G, 512MiB) or a share of the GPU's memory above "
                    "0 and up to 1 (0.8)",
                    text);
}

// Bytes of a unit; 0: no unit.
uint64_t unit_bytes(std::string unit) {
  if (unit.size() == 3 && unit.substr(1) == "iB") unit.resize(1);
  if (unit.size() == 2 && unit[1] == 'B') unit.resize(1);
  if (unit == "K") return uint64_t{1} << 10;
  if (unit == "M") return uint64_t{1} << 20;
  if (unit == "G") return uint64_t{1} << 30;
  return 0;
}

double gib(uint64_t bytes) {
  return static_cast<double>(bytes) / static_cast<double>(uint64_t{1} << 30);
}

// All numbers are far below 2^63; a sum that would pass it is as good as the largest.
uint64_t add(uint64_t a, uint64_t b) {
  return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}
uint64_t multiply(uint64_t a, uint64_t b) {
  return a != 0 && b > UINT64_MAX / a ? UINT64_MAX : a * b;
}

Error too_little(const DeviceMemoryRequest& r, const DeviceMemoryPlan& plan, bool limited, uint64_t free_bytes,
                 uint64_t total_bytes) {
  return make_error(ErrorCode::kCapacity,
                    "the model needs {} bytes of GPU memory ({:.2f} GiB: weights {}, cache {} in {} pages, positions "
                    "{}, workspace {}, loading {}, reserve {}), and {} bytes may be used ({} of {} are free{}); ask "
                    "for a smaller cache, {}or use a larger GPU",
                    plan.needed_bytes, gib(plan.needed_bytes), r.weight_bytes, plan.cache_bytes, plan.num_pages,
                    r.position_bytes, r.workspace_bytes, r.load_bytes, kDeviceReserveBytes, plan.budget_bytes,
                    free_bytes, total_bytes, limited ? ", --gpu-memory allows less" : "",
                    limited ? "raise --gpu-memory, " : "");
}

}  // namespace

Result<GpuMemoryLimit> parse_gpu_memory(const std::string& text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || !std::isfinite(value) || value <= 0) return bad_limit(text);
  const std::string unit(rest, end);
  GpuMemoryLimit limit;
  if (unit.empty() && value <= 1) {
    limit.fraction = value;
    return limit;
  }
  const uint64_t scale = unit.empty() ? 1 : unit_bytes(unit);
  const double bytes = value * static_cast<double>(scale);
  if (scale == 0 || bytes >= 0x1p62 || bytes != std::floor(bytes)) return bad_limit(text);
  limit.bytes = static_cast<uint64_t>(bytes);
  return limit;
}

Result<DeviceMemoryPlan> plan_device_memory(const DeviceMemoryRequest& request, const GpuMemoryLimit& limit,
                                            uint64_t free_bytes, uint64_t total_bytes) {
  uint64_t allowed = UINT64_MAX;
  if (limit.bytes > 0) allowed = limit.bytes;
  if (limit.fraction > 0) allowed = static_cast<uint64_t>(limit.fraction * static_cast<double>(total_bytes));
  DeviceMemoryPlan plan;
  plan.budget_bytes = std::min(free_bytes, allowed);
  plan.num_pages = request.cache_pages;
  if (plan.num_pages <= 0 && request.cache_bytes > 0) {
    plan.num_pages = static_cast<int64_t>(request.cache_bytes / std::max<uint64_t>(request.page_bytes, 1));
    if (plan.num_pages == 0) {
      return make_error(ErrorCode::kCapacity, "cache: {} bytes hold no page; a page of 64 positions takes {}",
                        request.cache_bytes, request.page_bytes);
    }
  }
  if (plan.num_pages <= 0) plan.num_pages = std::max<int64_t>(request.default_pages, 1);
  plan.cache_bytes = multiply(static_cast<uint64_t>(plan.num_pages), request.page_bytes);
  plan.needed_bytes = add(request.weight_bytes, plan.cache_bytes);
  for (const uint64_t part :
       {request.position_bytes, request.workspace_bytes, request.load_bytes, kDeviceReserveBytes}) {
    plan.needed_bytes = add(plan.needed_bytes, part);
  }
  if (plan.needed_bytes <= plan.budget_bytes) return plan;
  return too_little(request, plan, allowed < free_bytes, free_bytes, total_bytes);
}

}  // namespace quadrille::model
