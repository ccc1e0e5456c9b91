// SPDX-License-Identifier: Apache-2.0
// Two ways for tokens and rows. Over a region: each rank leaves its tokens where its peers read those that they serve,
// and the combine reads the rows that it adds; two barriers a call. The first stands between a rank's tokens and their
// readers, and between the last call's combine (which read slots and rows) and this call's new ones; the second stands
// between slots and rows and the combine, and between the readers of the tokens and the next call's. Without a region:
// all tokens are gathered by all, and a row goes back in the place of its route, with the places that are not served.
#include "moe/device_expert_parallel.h"

#include <algorithm>
#include <numeric>

#include "moe/device_call.h"
#include "moe/device_check.h"
#include "moe/device_expert_parts.h"
#include "parallel/device_communicator.h"

namespace quadrille::moe {
namespace {

using device::HandOver;
using kernels::TileList;

struct ExpertStep {
  DeviceCall call;  // of this rank's tokens; its parts are for those of all ranks
  const ExpertCall& experts;
  ExpertParts parts;
  int64_t all = 0;  // tokens of all ranks

  parallel::DeviceCommunicator& ranks() const { return *call.layer.ranks.expert; }
  device::Stream stream() const { return call.streams.main; }
  bool over_region() const { return experts.region.memory != nullptr; }
  std::byte* region(int rank) const { return experts.region.memory->at(rank); }
  std::byte* slots_of(int rank) const { return region(rank) + experts.region.parts.records; }
  std::byte* rows_of(int rank) const { return slots_of(rank) + experts.region.parts.slots; }
  int64_t own() const { return call.batch.num_tokens; }
  int64_t top_k() const { return call.layer.rule.top_k; }
  int64_t first_of(int rank) const {
    return std::accumulate(experts.rank_tokens.begin(), experts.rank_tokens.begin() + rank, int64_t{0});
  }
};

// Where all ranks' tokens are reached from here, once they are there.
kernels::RankTokens rank_tokens(const ExpertStep& step) {
  kernels::RankTokens tokens;
  tokens.num_ranks = step.ranks().size();
  tokens.top_k = step.top_k();
  tokens.act_bytes = act_pitch(step.call.layer.experts.hidden);
  for (int r = 0; r < tokens.num_ranks; ++r) {
    tokens.first[r] = step.first_of(r);
    tokens.records[r] = step.over_region() ? reinterpret_cast<const uint8_t*>(step.region(r))
                                           : step.call.workspace.at<uint8_t>(step.parts.records) +
                                                 tokens.first[r] * record_pitch(step.call.layer);
  }
  tokens.first[tokens.num_ranks] = step.all;
  return tokens;
}

// This rank's tokens, quantised, with scales and ids, where the others find them.
void enqueue_pack(const ExpertStep& step, const DeviceRoutes& routes, uint8_t* records) {
  if (step.own() == 0) return;
  const DeviceCall& call = step.call;
  kernels::QuantizeTokens quantize;
  quantize.num_tokens = step.own();
  quantize.k = call.layer.experts.hidden;
  quantize.act_pitch = record_pitch(call.layer);
  quantize.x = call.batch.x;
  quantize.route_weight = call.layer.rule.weight_on_input ? routes.weights : nullptr;
  quantize.act = records;
  quantize.act_scale = call.workspace.open<float>(step.parts.act_scale, step.stream());
  device::before_step("quantize_tokens", step.stream());
  call.table.quantize_tokens(quantize, step.stream());
  device::before_step("pack_tokens", step.stream());
  step.experts.table.pack_tokens(
      {step.own(), step.top_k(), act_pitch(quantize.k), quantize.act_scale, routes.ids, records}, step.stream());
}

// One of the two barriers of a call over a region.
Status meet(const ExpertStep& step, HandOver site) {
  if (device::dropped(site)) return {};
  return step.ranks().barrier(step.stream());
}

Status enqueue_send(const ExpertStep& step, const DeviceRoutes& routes) {
  const int rank = step.ranks().rank();
  if (step.over_region()) {
    device::fresh_buffer(step.region(rank), static_cast<size_t>(step.own() * record_pitch(step.call.layer)),
                         step.stream());
    enqueue_pack(step, routes, reinterpret_cast<uint8_t*>(step.region(rank)));
    return meet(step, HandOver::kTokensSent);
  }
  auto* all = step.call.workspace.open<uint8_t>(step.parts.records, step.stream());
  auto* mine = all + step.first_of(rank) * record_pitch(step.call.layer);
  enqueue_pack(step, routes, mine);
  std::vector<size_t> bytes;
  for (const int64_t tokens : step.experts.rank_tokens) {
    bytes.push_back(static_cast<size_t>(tokens * record_pitch(step.call.layer)));
  }
  return step.ranks().all_gather_v(mine, bytes, all, step.stream());
}

// The experts of this rank over all ranks' tokens, up to h. Which slot each route got is in `slot_of_route`.
MlpCall enqueue_up_here(const ExpertStep& step, const GemmConfigs& configs, int32_t* slot_of_route, float* absmax) {
  const DeviceCall& call = step.call;
  const DeviceMlp& mlp = call.layer.experts;
  const device::Stream stream = step.stream();
  kernels::LocalRoutes local;
  local.tokens = rank_tokens(step);
  local.num_experts = call.layer.rule.num_experts;
  local.local = step.experts.placement.local;
  local.ids = call.workspace.open<int32_t>(step.parts.ids, stream);
  local.status = call.status;
  device::before_step("local_routes", stream);
  step.experts.table.local_routes(local, stream);

  TileList lists[2];
  enqueue_plan(call, {step.all, local.ids, nullptr, 0, slot_of_route}, configs, lists);
  kernels::PlaceTokens place;
  place.tokens = local.tokens;
  place.slot_of_route = slot_of_route;
  place.act = call.workspace.open<uint8_t>(call.parts.experts.act, stream);
  place.act_scale = call.workspace.open<float>(call.parts.experts.act_scale, stream);
  device::before_step("place_tokens", stream);
  step.experts.table.place_tokens(place, stream);

  const MlpInput input{call.num_routes, place.act, local.tokens.act_bytes, place.act_scale};
  MlpCall mlp_call{call.table,         mlp,   call.layer.ranks, input, {lists[0], lists[1]}, configs, call.workspace,
                   call.parts.experts, stream};
  enqueue_up(mlp_call, absmax, call.workspace.at<int32_t>(call.parts.offsets) + mlp.gate_up.num_experts);
  return mlp_call;
}

// Where this call's slots go: the peers read them, or only this rank does.
int32_t* open_slots(const ExpertStep& step) {
  if (!step.over_region()) return step.call.workspace.open<int32_t>(step.call.parts.slot_of_route, step.stream());
  auto* slots = reinterpret_cast<int32_t*>(step.slots_of(step.ranks().rank()));
  device::fresh_buffer(slots, static_cast<size_t>(step.call.num_routes) * sizeof(int32_t), step.stream());
  return slots;
}

void* open_rows(const ExpertStep& step) {
  if (!step.over_region()) return nullptr;
  void* rows = step.rows_of(step.ranks().rank());
  device::fresh_buffer(rows, static_cast<size_t>(step.call.num_routes * row_bytes(step.call.layer)), step.stream());
  return rows;
}

// Rows to the ranks of their tokens. `rows` null: no expert is here, nothing of what is sent will be read.
Status enqueue_return(const ExpertStep& step, const void* rows) {
  const device::Stream stream = step.stream();
  if (step.over_region()) return meet(step, HandOver::kRowsReturned);
  const DeviceCall& call = step.call;
  const int64_t bytes = row_bytes(call.layer);
  auto* sent = call.workspace.open<uint8_t>(step.parts.sent, stream);
  if (rows != nullptr) {
    const auto* slots = call.workspace.at<int32_t>(call.parts.slot_of_route);
    device::before_step("return_rows", stream);
    step.experts.table.return_rows({call.num_routes, bytes, slots, rows, sent}, stream);
  }
  std::vector<size_t> to, from;
  for (const int64_t tokens : step.experts.rank_tokens) {
    to.push_back(static_cast<size_t>(tokens * step.top_k() * bytes));
    from.push_back(static_cast<size_t>(step.own() * step.top_k() * bytes));
  }
  auto* received = call.workspace.open<uint8_t>(step.parts.received, stream);
  return step.ranks().all_to_all_v(sent, to, received, from, stream);
}

kernels::CombineRanks combine_problem(const ExpertStep& step, const DeviceRoutes& routes) {
  const DeviceCall& call = step.call;
  kernels::CombineRanks combine;
  combine.num_ranks = step.ranks().size();
  combine.partial = call.layer.ranks.is_split();
  combine.num_tokens = step.own();
  combine.top_k = step.top_k();
  combine.width = call.layer.experts.hidden;
  combine.num_experts = call.layer.rule.num_experts;
  combine.ids = routes.ids;
  combine.serving = step.experts.placement.serving;
  const int64_t first_route = step.first_of(step.ranks().rank()) * step.top_k();
  const int64_t own_bytes = step.own() * step.top_k() * row_bytes(call.layer);
  for (int r = 0; r < combine.num_ranks; ++r) {
    if (step.over_region()) {
      combine.rows[r] = step.rows_of(r);
      combine.slots[r] = reinterpret_cast<const int32_t*>(step.slots_of(r)) + first_route;
    } else {
      combine.rows[r] = call.workspace.at<uint8_t>(step.parts.received) + r * own_bytes;
    }
  }
  combine.weight = call.layer.rule.weight_on_input ? nullptr : routes.weights;
  return combine;
}

Status enqueue_combine(const ExpertStep& step, kernels::CombineRanks combine) {
  if (step.own() == 0) return {};
  const DeviceCall& call = step.call;
  auto* partial = combine.partial ? call.workspace.open<float>(call.parts.partial, step.stream()) : nullptr;
  combine.out = partial != nullptr ? static_cast<void*>(partial) : call.batch.out;
  device::before_step("combine_ranks", step.stream());
  step.experts.table.combine_ranks(combine, step.stream());
  if (partial == nullptr) return {};
  return enqueue_sum(call.table, call.layer.ranks, partial, step.own() * combine.width, call.batch.out, step.stream());
}

// The configurations of both kinds of experts.
struct Choice {
  GemmConfigs routed, shared;
};
Result<Choice> choose(const kernels::DeviceTable& table, const DeviceMoeLayer& layer, int64_t all, int64_t own,
                      const DeviceLayerOptions& options) {
  Choice out;
  const int64_t rows = expected_rows(mapped(layer), all);
  if (has_experts(layer)) {
    QD_TRY(out.routed, choose_configs(table, layer.experts, rows, options));
  }
  if (layer.shared && own > 0) {
    QD_TRY(out.shared, choose_configs(table, *layer.shared, own, options));
  }
  return out;
}

// Everything behind the checks.
Status enqueue_layer(const ExpertStep& step, const Choice& configs) {
  const DeviceCall& call = step.call;
  const bool has_tokens = step.own() > 0;
  const bool agrees = call.layer.ranks.agrees_scale();
  const Absmax absmax = open_absmax(call);
  QD_TRY(const SharedExpert shared, enqueue_shared(call, configs.shared, absmax.shared));
  const void* shared_rows = nullptr;
  if (shared.call && !agrees) shared_rows = enqueue_down(*shared.call);
  const DeviceRoutes routes = has_tokens ? enqueue_router(call) : DeviceRoutes{};
  QD_TRY_STATUS(enqueue_send(step, routes));
  int32_t* slots = open_slots(step);
  std::optional<MlpCall> experts;
  if (has_experts(call.layer)) experts.emplace(enqueue_up_here(step, configs.routed, slots, absmax.routes));
  if (agrees) {
    QD_TRY_STATUS(exchange_absmax(call, absmax));
    if (shared.call) shared_rows = enqueue_down(*shared.call, absmax.shared);
  }
  const void* rows = experts ? enqueue_down(*experts, absmax.routes, open_rows(step)) : nullptr;
  QD_TRY_STATUS(enqueue_return(step, rows));
  if (runs_beside(call)) {
    QD_TRY_STATUS(
        device::hand_over(HandOver::kSharedEnds, call.streams.shared_ends, call.streams.side, call.streams.main));
  }
  kernels::CombineRanks combine = combine_problem(step, routes);
  combine.shared = shared_rows;
  combine.shared_gate = shared.gate;
  return enqueue_combine(step, combine);
}

}  // namespace

Status run_expert_parallel_layer(const kernels::DeviceTable& table, const DeviceMoeLayer& layer,
                                 const DeviceBatch& batch, const ExpertCall& experts, void* workspace,
                                 size_t workspace_size, const DeviceStreams& streams, uint32_t* status,
                                 const DeviceLayerOptions& options) {
  QD_TRY_STATUS(can_run_expert_parallel(layer, experts.rank_tokens));
  QD_TRY_STATUS(check_streams(streams, layer.shared.has_value()));
  const parallel::DeviceCommunicator& ranks = *layer.ranks.expert;
  const int64_t expected = experts.rank_tokens[static_cast<size_t>(ranks.rank())];
  if (batch.num_tokens != expected) {
    return make_error(ErrorCode::kInvalidArgument,
                      "expert-parallel layer: a batch of {} tokens, {} expected of rank {}", batch.num_tokens, expected,
                      ranks.rank());
  }
  const int64_t all = std::accumulate(experts.rank_tokens.begin(), experts.rank_tokens.end(), int64_t{0});
  if (all == 0) return {};
  QD_TRY_STATUS(check_memory(layer, batch, experts));
  QD_TRY_STATUS(check_region(layer, experts, all));
  const ExpertParts parts =
      plan_expert_parts(layer, all, batch.num_tokens, ranks.size(), experts.region.memory != nullptr);
  QD_TRY_STATUS(check_workspace(workspace, workspace_size, parts.total));
  QD_TRY(const Choice configs, choose(table, layer, all, batch.num_tokens, options));
  ExpertStep step{{table, layer, batch, Workspace(workspace), parts.layer, streams, nullptr, all * layer.rule.top_k},
                  experts,
                  parts,
                  all};
  QD_TRY(step.call.status, open_status(status, step.call.workspace, parts.layer.status, streams.main));
  return enqueue_layer(step, configs);
}

}  // namespace quadrille::moe
