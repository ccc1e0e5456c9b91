// SPDX-License-Identifier: Apache-2.0
// Inside a whole model, every launch of a decode step that does more than one step of it against these steps: same
// input, output bit for bit. Names the launch where bits of the model part.
#include <gtest/gtest.h>

#include <set>

#include "device/compare_bits.h"
#include "device/device_plan.h"
#include "kernels/api/registry.h"
#include "model/device_model.h"
#include "unit/model/golden_model.h"

namespace quadrille::testing {
namespace {

using kernels::DeviceW4A8Gemm;

// One test at a time: the table's functions are plain pointers.
struct Check {
  const kernels::DeviceTable* real = nullptr;
  PoolMemory* memory = nullptr;
  std::set<std::string> differences;
  int64_t launches = 0;
};
Check* check = nullptr;

template <typename T>
T* copy_of(const T* values, int64_t count, device::Stream s) {
  return check->memory->copy_of(on_host<T>(values, count, s), s);
}
template <typename T>
void compare(const std::string& what, const void* joined, const void* apart, int64_t count, int64_t width,
             device::Stream s) {
  ++check->launches;
  const std::string text = bit_differences(on_host<T>(joined, count, s), on_host<T>(apart, count, s), width);
  if (!text.empty() && check->differences.size() < 20) check->differences.insert(what + ": " + text);
}

// The codes of p's input, made one launch a step.
void make_codes(const DeviceW4A8Gemm& p, DeviceW4A8Gemm* apart, device::Stream s) {
  PoolMemory& memory = *check->memory;
  apart->x = nullptr;
  apart->source_row = nullptr;
  const DeviceRows rows = take_rows(p.act_rows, p.k, &memory, s);
  must(device::fill(rows.act, 0, static_cast<size_t>(p.act_rows * rows.pitch), s));
  if (p.x != nullptr && p.list.tiles == nullptr) {
    check->real->quantize_tokens({p.act_rows, 1, p.k, rows.pitch, p.x, nullptr, nullptr, rows.act, rows.scale}, s);
  } else if (p.x != nullptr) {
    kernels::QuantizeListed listed;
    listed.list = p.list;
    listed.k = p.k;
    listed.act_pitch = rows.pitch;
    listed.x = p.x;
    listed.act = rows.act;
    listed.act_scale = rows.scale;
    check->real->quantize_listed(listed, s);
  } else {
    const auto source = on_host<int32_t>(p.source_row, p.act_rows, s);
    for (int64_t slot = 0; slot < p.act_rows; ++slot) {
      const int64_t token = source[static_cast<size_t>(slot)] / p.source_divisor;
      must(device::copy_on_device(rows.act + slot * rows.pitch, p.act + token * p.act_pitch,
                                  static_cast<size_t>(p.act_pitch), s));
      must(device::copy_on_device(rows.scale + slot, p.act_scale + token, sizeof(float), s));
    }
  }
  apart->act = rows.act;
  apart->act_pitch = rows.pitch;
  apart->act_scale = rows.scale;
}

void checked_gemm(const DeviceW4A8Gemm& p, device::Stream s) {
  if (p.x == nullptr && p.source_row == nullptr) return check->real->w4a8_gemm(p, s);
  DeviceW4A8Gemm apart = p;
  make_codes(p, &apart, s);
  const int64_t width = p.output == kernels::GemmOutput::kActivated ? p.n / 2 : p.n;
  apart.out = check->memory->take<uint16_t>(p.act_rows * p.out_pitch, 16, s);
  apart.config = 0;
  check->real->w4a8_gemm(apart, s);
  check->real->w4a8_gemm(p, s);
  const char* name = p.source_row != nullptr ? "gathered codes" : p.list.tiles != nullptr ? "experts' rows" : "rows";
  compare<uint16_t>(fmt::format("{}, n {} k {} of {} rows", name, p.n, p.k, p.act_rows), p.out, apart.out,
                    p.act_rows * width, width, s);
}

void checked_route(const kernels::DeviceNormAndRoute& p, device::Stream s) {
  PoolMemory& memory = *check->memory;
  const int64_t tokens = p.norm.num_rows, width = p.norm.width, routes = tokens * p.route.route.top_k;
  kernels::DeviceNormAndRoute apart = p;
  kernels::DeviceAddNorm& norm = apart.norm;
  if (norm.x_out != nullptr) norm.x_out = memory.take<uint16_t>(tokens * width, 16, s);
  norm.normed = memory.take<uint16_t>(tokens * width, 16, s);
  if (norm.act != nullptr) {
    norm.act = memory.take<uint8_t>(tokens * norm.act_pitch, 16, s);
    norm.act_scale = memory.take<float>(tokens, 4, s);
  }
  check->real->add_norm(norm, s);
  kernels::RouteAndPlan& route = apart.route;
  route.logits.x = norm.normed;
  route.logits.logits = memory.take<float>(tokens * route.logits.num_experts, 4, s);
  route.route.logits = route.logits.logits;
  route.route.ids = memory.take<int32_t>(routes, 4, s);
  route.route.weights = memory.take<float>(routes, 4, s);
  route.plan.ids = route.route.ids;
  route.plan.offsets = memory.take<int32_t>(route.plan.num_experts + 1, 4, s);
  route.plan.route_of_slot = memory.take<int32_t>(routes, 4, s);
  route.plan.slot_of_route = memory.take<int32_t>(routes, 4, s);
  route.plan.tiles = memory.take<kernels::TokenTile>(route.plan.max_tiles, 16, s);
  route.plan.num_tiles = memory.take<int32_t>(1, 4, s);
  check->real->route_and_plan(route, s);
  check->real->norm_and_route(p, s);
  const std::string of = fmt::format("norm and route of {}: ", tokens);
  if (norm.x_out != nullptr) compare<uint16_t>(of + "sums", p.norm.x_out, norm.x_out, tokens * width, width, s);
  if (norm.act != nullptr) {
    compare<uint8_t>(of + "codes", p.norm.act, norm.act, tokens * norm.act_pitch, norm.act_pitch, s);
    compare<uint32_t>(of + "scales", p.norm.act_scale, norm.act_scale, tokens, 1, s);
  }
  compare<uint32_t>(of + "logits", p.route.logits.logits, route.logits.logits, tokens * route.logits.num_experts,
                    route.logits.num_experts, s);
  compare<int32_t>(of + "ids", p.route.route.ids, route.route.ids, routes, p.route.route.top_k, s);
  compare<uint32_t>(of + "weights", p.route.route.weights, route.route.weights, routes, p.route.route.top_k, s);
  compare<int32_t>(of + "slot of route", p.route.plan.slot_of_route, route.plan.slot_of_route, routes, 8, s);
  compare<int32_t>(of + "route of slot", p.route.plan.route_of_slot, route.plan.route_of_slot, routes, 8, s);
  compare<int32_t>(of + "offsets", p.route.plan.offsets, route.plan.offsets, route.plan.num_experts + 1, 1, s);
  compare<int32_t>(of + "number of tiles", p.route.plan.num_tiles, route.plan.num_tiles, 1, 1, s);
}

// Pages written by both are the same bytes, so the joined launch may follow.
void checked_attention(const kernels::DeviceAttention& p, device::Stream s) {
  if (p.projection.qkv == nullptr) return check->real->attention(p, s);
  const int64_t width = p.num_heads * p.pages.head_dim;
  kernels::DeviceAttention apart = p;
  kernels::DeviceQkv heads = p.projection;
  heads.q = check->memory->take<uint16_t>(p.num_singles * width, 16, s);
  check->real->split_heads(heads, s);
  apart.projection = {};
  apart.q = heads.q;
  apart.act = nullptr;
  apart.out = check->memory->take<uint16_t>(p.num_singles * width, 16, s);
  check->real->attention(apart, s);
  check->real->attention(p, s);
  compare<uint16_t>(fmt::format("attention of {} with its heads", p.num_singles), p.out, apart.out,
                    p.num_singles * width, width, s);
}

TEST(JoinedLaunches, EachEqualsItsSteps) {
  if (auto ok = device::available(); !ok) GTEST_SKIP() << ok.error().message;
  Check state;
  state.real = must(kernels::device_table());
  kernels::DeviceTable table = *state.real;
  table.w4a8_gemm = checked_gemm;
  table.norm_and_route = checked_route;
  table.attention = checked_attention;
  model::LoadOptions options = options_of({"", kernels::Numerics::kExact, kernels::Rounding::kBf16});
  options.cache_pages = 16;
  model::DeviceOptions device;
  device.table = &table;
  device.graphs = false;
  const std::string folder = std::string(QD_SOURCE_DIR) + "/models/abacus/w4a8";
  check = &state;
  PoolMemory loading;
  state.memory = &loading;
  model::ModelConfig config = must(model::DeviceModel::load(folder, options, device))->config();
  config.hidden_size = 2048;
  config.num_heads = 32;
  config.num_kv_heads = 4;
  config.head_dim = 128;
  config.expert_width = 768;
  config.router.num_experts = 128;
  config.router.top_k = 8;
  const auto model = must(model::DeviceModel::random(config, {}, options, device));
  for (size_t count : {1, 2, 3, 4}) {
    for (int32_t step = 0; step < 3; ++step) {
      PoolMemory memory;
      state.memory = &memory;
      std::vector<std::vector<int32_t>> sequences(count);
      for (size_t s = 0; s < count; ++s) {
        for (int32_t i = 0; i <= step; ++i) sequences[s].push_back(static_cast<int32_t>(97 * s) + 13 * i + 5);
      }
      run_sequences(*model, sequences, {1});
      if (!state.differences.empty()) break;
    }
  }
  check = nullptr;
  for (const std::string& text : state.differences) ADD_FAILURE() << text;
  EXPECT_GT(state.launches, 100);
}

}  // namespace
}  // namespace quadrille::testing
