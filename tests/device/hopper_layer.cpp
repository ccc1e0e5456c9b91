// SPDX-License-Identifier: Apache-2.0
// Numbers the used experts anew and runs moe::run_layer.
#include "device/hopper_layer.h"

#include <algorithm>
#include <numeric>

#include "device/must.h"
#include "device/random_data.h"
#include "kernels/api/registry.h"
#include "moe/layer.h"
#include "numerics/bf16.h"

namespace quadrille::testing {
namespace {

// Routes of the named tokens with experts numbered 0.. in the order of `used`; -1 stays.
struct CompactRoutes {
  std::vector<int64_t> used;  // experts here
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

CompactRoutes compact(const LayerSpec& spec, const LayerRoutes& routes, const std::vector<int64_t>& keys) {
  CompactRoutes out;
  const std::vector<int32_t> map = spec.expert_map();
  for (int64_t key : keys) {
    for (int64_t j = 0; j < spec.top_k; ++j) {
      const auto route = static_cast<size_t>(key * spec.top_k + j);
      const int32_t id = routes.ids[route];
      const int32_t here = id < 0 || map.empty() ? id : map[static_cast<size_t>(id)];
      out.ids.push_back(here);
      out.weights.push_back(routes.weights[route]);
      if (here >= 0) out.used.push_back(here);
    }
  }
  std::sort(out.used.begin(), out.used.end());
  out.used.erase(std::unique(out.used.begin(), out.used.end()), out.used.end());
  if (out.used.empty()) out.used.push_back(0);
  for (int32_t& id : out.ids) {
    if (id >= 0) id = static_cast<int32_t>(std::lower_bound(out.used.begin(), out.used.end(), id) - out.used.begin());
  }
  return out;
}

struct CpuMlp {
  CpuStack gate_up, down;
  moe::GatedMlp mlp;

  CpuMlp(const LayerSpec& spec, bool shared, const std::vector<int64_t>& experts, ThreadPool* pool)
      : gate_up(make_cpu_stack(gate_up_stack(spec, shared), experts, pool)),
        down(make_cpu_stack(down_stack(spec, shared), experts, pool)) {
    mlp.hidden = spec.hidden;
    mlp.width = spec.width;
    mlp.activation = spec.activation_rule();
    mlp.gate_up = gate_up.linear;
    mlp.down = down.linear;
  }
};

}  // namespace

std::vector<int64_t> keys_in_order(int64_t tokens) {
  std::vector<int64_t> keys(static_cast<size_t>(tokens));
  std::iota(keys.begin(), keys.end(), 0);
  return keys;
}

StackSpec gate_up_stack(const LayerSpec& spec, bool shared) {
  StackSpec stack;
  stack.experts = shared ? 1 : spec.experts_here();
  stack.part_n = spec.width;
  stack.num_parts = spec.activation_rule().gated() ? 2 : 1;
  stack.matrix = kGate;
  stack.k = spec.hidden;
  stack.group = spec.group;
  stack.numerics = spec.numerics;
  stack.source = spec.source;
  stack.bias = spec.bias;
  stack.first_expert = shared ? kSharedExpert : 0;
  stack.seed = spec.seed;
  return stack;
}

StackSpec down_stack(const LayerSpec& spec, bool shared) {
  StackSpec stack = gate_up_stack(spec, shared);
  stack.part_n = spec.hidden;
  stack.num_parts = 1;
  stack.matrix = kDown;
  stack.k = spec.width;
  return stack;
}

std::vector<uint16_t> hopper_layer(const LayerSpec& spec, const LayerRoutes& routes, const std::vector<int64_t>& keys,
                                   ThreadPool* pool) {
  const auto tokens = static_cast<int64_t>(keys.size());
  const CompactRoutes chosen = compact(spec, routes, keys);
  const CpuMlp experts(spec, false, chosen.used, pool);
  moe::MoeLayer layer;
  layer.rule.num_experts = static_cast<int64_t>(chosen.used.size());
  layer.rule.top_k = spec.top_k;
  layer.rule.weight_on_input = spec.weight_on_input;
  layer.experts = experts.mlp;
  std::optional<CpuMlp> shared;
  if (spec.shared != Shared::kNone) {
    shared.emplace(spec, true, std::vector<int64_t>{0}, pool);
    layer.shared = shared->mlp;
  }
  std::vector<uint16_t> gate;
  if (spec.shared == Shared::kGated) {
    for (int64_t i = 0; i < spec.hidden; ++i) gate.push_back(small_weight_bits(hash(spec.seed, 15), i));
    layer.shared_gate_weight = gate.data();
  }
  std::vector<float> x(static_cast<size_t>(tokens * spec.hidden)), out(x.size());
  pool->run(tokens, [&](int64_t t) {
    for (int64_t i = 0; i < spec.hidden; ++i) {
      x[static_cast<size_t>(t * spec.hidden + i)] = numerics::bf16_to_f32(
          activation_bits(spec.seed, keys[static_cast<size_t>(t)], i, spec.hidden, spec.nonfinite));
    }
  });
  Arena scratch;
  moe::Execution execution;
  execution.table = must(kernels::select_table("hopper"));
  execution.kernels = {pool, &scratch};
  execution.numerics = spec.numerics;
  must(moe::run_layer(layer, x.data(), tokens, {chosen.ids.data(), chosen.weights.data()}, execution, out.data()));
  std::vector<uint16_t> codes;
  codes.reserve(out.size());
  for (float value : out) codes.push_back(numerics::bf16_from_f32(value));
  return codes;
}

}  // namespace quadrille::testing
