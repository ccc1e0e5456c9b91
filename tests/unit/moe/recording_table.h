// SPDX-License-Identifier: Apache-2.0
// A device table that computes nothing and writes down what it was asked to read and to write, in order.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "kernels/api/device_table.h"
#include "moe/device_workspace.h"
#include "parallel/device_communicator.h"

namespace quadrille::testing {

struct Span {
  uintptr_t begin = 0, end = 0;
  bool meets(const Span& other) const { return begin < other.end && other.begin < end; }
};
inline Span span_of(const void* memory, int64_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  return memory == nullptr ? Span{} : Span{begin, begin + static_cast<uintptr_t>(bytes)};
}

struct RecordedCall {
  std::string name;
  void* stream = nullptr;
  std::vector<Span> reads, writes;
};

// One recording at a time: the table's functions are plain pointers.
struct Recording {
  std::vector<RecordedCall> calls;
  std::vector<kernels::DeviceW4A8Gemm> gemms;
  std::vector<kernels::PlanRoutes> plans;
  std::vector<kernels::QuantizeTokens> quantized;
  std::vector<kernels::DeviceCombine> combined;
  std::vector<kernels::DeviceCombinePartial> combined_partial;
  std::vector<kernels::QuantizeListed> quantized_listed;
  std::vector<kernels::RowAbsmax> absmax;
  std::vector<kernels::DeviceRouteTokens> routed;
  std::vector<kernels::RouteAndPlan> routed_at_once;
  std::vector<kernels::DeviceAddNorm> normed;
  std::array<int32_t, 2> choice = {1, 1};  // by choose_w4a8's n: below 1000, others
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const RecordedCall& call : calls) out.push_back(call.name);
    return out;
  }
};
inline Recording* recording = nullptr;

inline constexpr kernels::GemmConfig kFakeConfigs[] = {
    {"64x8", 64, 8, 4, true}, {"64x16", 64, 16, 4, true}, {"64x64", 64, 64, 2, false}, {"128x64", 128, 64, 1, false}};

inline void record(const char* name, device::Stream stream, std::vector<Span> reads, std::vector<Span> writes) {
  recording->calls.push_back({name, stream.handle, std::move(reads), std::move(writes)});
}

inline std::vector<Span> list_spans(const kernels::TileList& list) {
  if (list.tiles == nullptr) return {};
  return {span_of(list.tiles, list.max_tiles * static_cast<int64_t>(sizeof(kernels::TokenTile))),
          span_of(list.num_tiles, 4)};
}

inline void record_plan(const kernels::PlanRoutes& p, device::Stream stream) {
  const int64_t routes = p.num_tokens * p.top_k;
  recording->plans.push_back(p);
  record("plan_routes", stream, {span_of(p.ids, routes * 4)},
         {span_of(p.offsets, (p.num_experts + 1) * 4), span_of(p.route_of_slot, routes * 4),
          span_of(p.slot_of_route, routes * 4), span_of(p.tiles, p.max_tiles * 32), span_of(p.num_tiles, 4),
          span_of(p.scratch, kernels::plan_scratch_ints(routes, p.num_experts) * 4), span_of(p.status, 4)});
}

inline void record_route_and_plan(const kernels::RouteAndPlan& p, device::Stream stream,
                                  const char* name = "route_and_plan") {
  recording->routed.push_back(p.route);
  recording->plans.push_back(p.plan);
  recording->routed_at_once.push_back(p);
  const int64_t tokens = p.logits.num_tokens, routes = tokens * p.route.top_k;
  std::vector<Span> reads, writes;
  for (const Span& span : {span_of(p.route.ids, routes * 4), span_of(p.route.weights, routes * 4),
                           span_of(p.plan.offsets, (p.plan.num_experts + 1) * 4),
                           span_of(p.plan.route_of_slot, routes * 4), span_of(p.plan.slot_of_route, routes * 4),
                           span_of(p.plan.tiles, p.plan.max_tiles * 32), span_of(p.plan.num_tiles, 4),
                           span_of(p.plan.status, 4), span_of(p.logits.logits, tokens * p.logits.num_experts * 4)}) {
    writes.push_back(span);
  }
  record(name, stream, reads, writes);
}

inline void record_gemm(const kernels::DeviceW4A8Gemm& p, device::Stream stream) {
  recording->gemms.push_back(p);
  const int64_t width = p.output == kernels::GemmOutput::kActivated && p.activation.gated() ? p.n / 2 : p.n;
  std::vector<Span> reads = list_spans(p.list);
  const int64_t act_rows = p.source_row != nullptr ? p.act_rows / p.source_divisor : p.act_rows;
  reads.push_back(span_of(p.act, act_rows * p.act_pitch));
  reads.push_back(span_of(p.act_scale, act_rows * 4));
  reads.push_back(span_of(p.x, p.act_rows * p.k * 2));
  reads.push_back(span_of(p.source_row, p.source_row != nullptr ? p.act_rows * 4 : 0));
  record(p.output == kernels::GemmOutput::kActivated ? "gemm1" : "gemm2", stream, reads,
         {span_of(p.out, p.act_rows * width * (p.output == kernels::GemmOutput::kRowsF32 ? 4 : 2))});
}

inline void record_combine_partial(const kernels::DeviceCombinePartial& p, device::Stream stream) {
  recording->combined_partial.push_back(p);
  const int64_t routes = p.num_tokens * p.top_k;
  record("combine_partial", stream,
         {span_of(p.rows, routes * p.width * 4), span_of(p.slot, routes * 4), span_of(p.weight, routes * 4),
          span_of(p.shared, p.num_tokens * p.width * 4), span_of(p.shared_gate, p.num_tokens * 4)},
         {span_of(p.out, p.num_tokens * p.width * 4)});
}

inline kernels::DeviceTable recording_table() {
  kernels::DeviceTable table{};
  table.name = "recording";
  table.plan_routes = record_plan;
  table.plan_masked = [](const kernels::PlanMasked& p, device::Stream stream) {
    record("plan_masked", stream, {span_of(p.masked_m, p.num_experts * 4)},
           {span_of(p.tiles, p.num_experts * ((p.max_m + p.tile_tokens - 1) / p.tile_tokens) * 32),
            span_of(p.num_tiles, 4), span_of(p.status, 4)});
  };
  table.router_logits = [](const kernels::DeviceRouterLogits& p, device::Stream stream) {
    record("router_logits", stream, {}, {span_of(p.logits, p.num_tokens * p.num_experts * 4)});
  };
  table.route_tokens = [](const kernels::DeviceRouteTokens& p, device::Stream stream) {
    recording->routed.push_back(p);
    record("route_tokens", stream, {},
           {span_of(p.ids, p.num_tokens * p.top_k * 4), span_of(p.weights, p.num_tokens * p.top_k * 4)});
  };
  table.route_and_plan = [](const kernels::RouteAndPlan& p, device::Stream stream) {
    record_route_and_plan(p, stream);
  };
  table.norm_and_route = [](const kernels::DeviceNormAndRoute& p, device::Stream stream) {
    recording->normed.push_back(p.norm);
    record_route_and_plan(p.route, stream, "norm_and_route");
  };
  table.add_norm = [](const kernels::DeviceAddNorm& p, device::Stream stream) {
    recording->normed.push_back(p);
    record("add_norm", stream, {}, {});
  };
  table.quantize_tokens = [](const kernels::QuantizeTokens& p, device::Stream stream) {
    recording->quantized.push_back(p);
    const int64_t rows = p.num_tokens * p.top_k;
    record("quantize_tokens", stream, {span_of(p.slot_of_route, rows * 4)},
           {span_of(p.act, rows * p.act_pitch), span_of(p.act_scale, rows * 4)});
  };
  table.quantize_listed = [](const kernels::QuantizeListed& p, device::Stream stream) {
    recording->quantized_listed.push_back(p);
    // Rows: those of a tile list are the slots of the last plan.
    const int64_t rows = p.list.tiles == nullptr ? p.list.num_rows
                         : recording->plans.empty()
                             ? recording->gemms.back().act_rows
                             : recording->plans.back().num_tokens * recording->plans.back().top_k;
    std::vector<Span> reads = list_spans(p.list);
    reads.push_back(span_of(p.x, rows * p.k * 2));
    reads.push_back(span_of(p.absmax, rows * 4));
    record("quantize_listed", stream, reads, {span_of(p.act, rows * p.act_pitch), span_of(p.act_scale, rows * 4)});
  };
  table.w4a8_gemm = record_gemm;
  table.combine = [](const kernels::DeviceCombine& p, device::Stream stream) {
    recording->combined.push_back(p);
    const int64_t routes = p.num_tokens * p.top_k;
    record("combine", stream,
           {span_of(p.rows, routes * p.width * 2), span_of(p.slot, routes * 4), span_of(p.weight, routes * 4),
            span_of(p.shared, p.num_tokens * p.width * 2), span_of(p.shared_gate, p.num_tokens * 4)},
           {span_of(p.out, p.num_tokens * p.width * 2)});
  };
  table.combine_partial = record_combine_partial;
  table.row_absmax = [](const kernels::RowAbsmax& p, device::Stream stream) {
    recording->absmax.push_back(p);
    record("row_absmax", stream, {span_of(p.x, p.num_rows * p.k * 2)}, {span_of(p.absmax, p.num_rows * 4)});
  };
  table.round_to_bf16 = [](const kernels::RoundToBf16& p, device::Stream stream) {
    record("round_to_bf16", stream, {span_of(p.x, p.count * 4)}, {span_of(p.out, p.count * 2)});
  };
  table.w4a8_configs = [] { return std::span<const kernels::GemmConfig>(kFakeConfigs); };
  table.choose_w4a8 = [](int64_t n, int64_t, int64_t, int64_t, kernels::Numerics, int64_t) {
    return recording->choice[n < 1000 ? 0 : 1];
  };
  return table;
}

// A rank whose two reductions are written down; the others are not for the layer.
class RecordingRank final : public parallel::DeviceCommunicator {
 public:
  RecordingRank(int rank, int size) : DeviceCommunicator(rank, size) {}
  const char* body() const override { return "recording"; }
  Status all_reduce_sum(float* data, size_t count, device::Stream stream) override {
    return reduce("all_reduce_sum", data, count, stream);
  }
  Status all_reduce_max(float* data, size_t count, device::Stream stream) override {
    return reduce("all_reduce_max", data, count, stream);
  }
  Status all_gather(const void*, size_t, void*, device::Stream) override { return refused(); }
  Status all_gather_v(const void*, std::span<const size_t>, void*, device::Stream) override { return refused(); }
  Status reduce_scatter_sum(const float*, std::span<const size_t>, float*, device::Stream) override {
    return refused();
  }
  Status all_to_all_v(const void*, std::span<const size_t>, void*, std::span<const size_t>, device::Stream) override {
    return refused();
  }
  Status broadcast(void*, size_t, int, device::Stream) override { return refused(); }
  Status barrier(device::Stream) override { return refused(); }
  Status check() override { return {}; }

 private:
  static Status reduce(const char* name, float* data, size_t count, device::Stream stream) {
    const Span span = span_of(data, static_cast<int64_t>(count * sizeof(float)));
    recording->calls.push_back({name, stream.handle, {span}, {span}});
    return {};
  }
  static Status refused() { return make_error(ErrorCode::kUnsupported, "a collective that no layer asks for"); }
};

}  // namespace quadrille::testing
