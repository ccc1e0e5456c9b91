// SPDX-License-Identifier: Apache-2.0
// Bytes as src/parallel/nccl.cpp and src/moe/row_parallel.cpp send them; times from the curves of rates.h.
#include "plan/traffic.h"

#include <algorithm>
#include <cmath>

#include "kernels/api/peer_problems.h"

namespace quadrille::plan {
namespace {

constexpr double kFloat = 4, kBf16 = 2, kMicro = 1e6;
// What moe/dispatch.cpp sends beside the rows: the scale of a quantised row, a route, the counts for one rank.
constexpr double kScale = 4, kRoute = 8, kCounts = 16;

// A word of a float and its epoch for each float of whole chunks (kernels/api/peer_problems.h).
double one_shot_bytes(double bytes) {
  constexpr auto kChunk = static_cast<double>(kernels::kOneShotChunk);
  return std::ceil(bytes / kFloat / kChunk) * kChunk * 2 * kFloat;
}

// Whether any layer has this part stored as W4A8: then the row that is split has a scale that the ranks agree on.
template <typename Has>
int64_t count_layers(const PlanShape& shape, Has&& has) {
  int64_t count = 0;
  for (size_t l = 0; l < shape.config.layers.size(); ++l) count += has(shape.config.layers[l], shape.forms[l]) ? 1 : 0;
  return count;
}

}  // namespace

double Wires::reduction_us(double read, double written) const {
  return gpu_.kernel_start.value + (read + written) / gpu_.row_bandwidth.value * kMicro;
}

PlanCollective Wires::transfer(std::string name, int64_t calls, LinkKind kind, double sent, const Peers& peers) const {
  const double partners = peers.size - 1;
  PlanCollective c;
  c.name = std::move(name);
  c.method = kind == LinkKind::kAllGather ? "all_gather" : kind == LinkKind::kAllToAll ? "all_to_all" : "all_reduce";
  c.calls = calls;
  c.sent = sent;
  c.outside = sent * peers.outside / partners;
  c.basis = peers.size == 2 && peers.outside == 0 ? Basis::kMeasured : Basis::kDerived;
  if (peers.outside < peers.size - 1) c.us = curve_us(link_curve(kind), sent - c.outside);
  if (peers.outside > 0) {
    const double rate = links_.host_bandwidth.value * links_.host_share.value;
    c.us = std::max(c.us, links_.host_start.value + c.outside / rate * kMicro);
    c.basis = Basis::kAssumed;
  }
  return c;
}

PlanCollective Wires::reduce(std::string name, int64_t calls, double bytes, bool takes_max) const {
  const Peers peers = tp();
  const double n = peers.size;
  const bool is_small = bytes <= links_.one_shot_bytes.value;
  if (is_small && peers.outside == 0) {
    PlanCollective c;
    c.name = std::move(name);
    c.method = "one-shot";
    c.calls = calls;
    c.sent = (n - 1) * one_shot_bytes(bytes);
    c.us = links_.one_shot_start.value + c.sent / links_.one_shot_bandwidth.value * kMicro;
    c.basis = Basis::kAssumed;
    return c;
  }
  if (is_small) {  // every rank gets all vectors and reduces them itself
    PlanCollective c = transfer(std::move(name), calls, LinkKind::kAllGather, (n - 1) * bytes, peers);
    c.method = "all_gather + reduction";
    c.us += reduction_us(n * bytes, bytes);
    return c;
  }
  if (peers.size == 2 && peers.outside == 0 && !takes_max) {
    return transfer(std::move(name), calls, LinkKind::kAllReduce, bytes, peers);
  }
  const double slice = bytes / n;
  PlanCollective c = transfer(std::move(name), calls, LinkKind::kAllToAll, (n - 1) * slice, peers);
  const PlanCollective back = transfer("", calls, LinkKind::kAllGather, (n - 1) * slice, peers);
  c.method = "exchange + all_gather";
  c.us += back.us + reduction_us(bytes, slice);
  c.sent += back.sent;
  c.outside += back.outside;
  c.basis = weaker(c.basis, back.basis);
  return c;
}

PlanCollective Wires::gather_tp(std::string name, int64_t calls, double bytes) const {
  return transfer(std::move(name), calls, LinkKind::kAllGather, (grid_.tp - 1) * bytes, tp());
}

PlanCollective Wires::gather_ep(std::string name, int64_t calls, double bytes) const {
  return transfer(std::move(name), calls, LinkKind::kAllGather, (grid_.ep - 1) * bytes, ep());
}

PlanCollective Wires::exchange_ep(std::string name, int64_t calls, double bytes) const {
  return transfer(std::move(name), calls, LinkKind::kAllToAll, bytes, ep());
}

std::vector<PlanCollective> expert_collectives(const PlanShape& shape, const Wires& wires, const PlanGrid& grid,
                                               int64_t tokens, int64_t layers, double shared_rows) {
  std::vector<PlanCollective> list;
  if (layers == 0) return list;
  const auto& config = shape.config;
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto slice = static_cast<double>(PlanLoad::slice_tokens(tokens, grid.ep));
  const RankLoad load = rank_load(config.router, grid.ep, tokens);
  const double routes = slice * static_cast<double>(config.router.top_k) * load.imbalance();
  const double leave = routes * (grid.ep - 1) / grid.ep;
  if (grid.ep > 1) {
    // A token goes once to each rank that holds one of its experts.
    const double rows = slice * load.imbalance() * (grid.ep - 1) * share_of_ranks_hit(config.router, grid.ep);
    list.push_back(wires.exchange_ep("experts: counts", layers, (grid.ep - 1) * kCounts));
    list.push_back(wires.exchange_ep("experts: dispatch", layers, rows * (hidden + kScale) + leave * kRoute));
  }
  const bool agrees =
      std::any_of(shape.forms.begin(), shape.forms.end(), [](const LayerForms& f) { return f.experts_down.is_w4; });
  if (grid.tp > 1 && agrees) {
    const double computed = grid.ep == 1 ? slice * static_cast<double>(config.router.top_k) : load.busiest;
    list.push_back(wires.reduce("experts: scales", layers, (computed + shared_rows) * kFloat, true));
  }
  if (grid.ep > 1) {
    list.push_back(wires.exchange_ep("experts: return", layers, leave * hidden * (grid.tp > 1 ? kFloat : kBf16)));
  }
  if (grid.tp > 1) list.push_back(wires.reduce("experts: sum", layers, slice * hidden * kFloat, false));
  return list;
}

std::vector<PlanCollective> step_collectives(const PlanShape& shape, const Wires& wires, const PlanGrid& grid,
                                             const PlanLoad& load, const StepTokens& step) {
  std::vector<PlanCollective> list;
  const auto& config = shape.config;
  const auto tokens = static_cast<double>(load.group_tokens(step.all, grid.ep));
  const auto slice = static_cast<double>(PlanLoad::slice_tokens(step.all, grid.ep));
  const double stream = tokens * static_cast<double>(config.hidden_size) * kFloat;
  const int64_t moe_layers = config.num_moe_layers(), layers = config.num_layers;
  const auto add_max = [&](const char* name, int64_t calls, double rows) {
    if (calls > 0) list.push_back(wires.reduce(name, calls, rows * kFloat, true));
  };
  if (grid.tp > 1) {
    list.push_back(wires.reduce("embedding: sum", 1, stream, false));
    if (config.qk_norm == model::QkNorm::kWholeProjection) {
      const auto width = static_cast<double>(config.q_width() + config.kv_width());
      list.push_back(wires.gather_tp("attention: rows of q and k", 2 * layers, tokens * width * kFloat / 2 / grid.tp));
    }
    add_max("attention: scales", count_layers(shape, [](const auto&, const LayerForms& f) { return f.o.is_w4; }),
            tokens);
    list.push_back(wires.reduce("attention: sum", layers, stream, false));
    const auto dense = [](const auto& l, const LayerForms& f) { return !l.is_moe && f.dense_down.is_w4; };
    add_max("dense: scales", count_layers(shape, dense), tokens);
    if (moe_layers < layers) list.push_back(wires.reduce("dense: sum", layers - moe_layers, stream, false));
  }
  // The rows of a shared expert agree on their scales in the same call.
  const double shared_rows = config.shared_width > 0 ? slice : 0;
  for (PlanCollective& c : expert_collectives(shape, wires, grid, step.all, moe_layers, shared_rows)) {
    list.push_back(std::move(c));
  }
  if (grid.ep > 1 && load.attention == AttentionOver::kReplicated) {
    const double rows = slice * static_cast<double>(config.hidden_size) * kBf16;
    list.push_back(wires.gather_ep("experts: rows of all tokens", moe_layers, rows));
  }
  if (grid.tp > 1) {
    const auto logits = static_cast<double>(load.group_tokens(step.logits, grid.ep));
    list.push_back(
        wires.gather_tp("head: logits", 1, logits * static_cast<double>(config.vocab_size) / grid.tp * kFloat));
  }
  return list;
}

}  // namespace quadrille::plan
