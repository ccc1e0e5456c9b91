// SPDX-License-Identifier: Apache-2.0
// The tables of values and the lists behind conformance_cases.h.
#include "device/conformance_cases.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "device/random_data.h"

namespace quadrille::testing {
namespace {

using kernels::Activation;
using kernels::Numerics;
using kernels::W4Source;

constexpr std::array<int64_t, 10> kTokenCounts{0, 1, 2, 7, 16, 33, 64, 222, 1024, 4096};
constexpr std::array<int64_t, 7> kExpertCounts{1, 4, 8, 60, 64, 128, 256};
constexpr std::array<int64_t, 5> kChoices{1, 2, 4, 6, 8};
constexpr std::array<int64_t, 4> kGroups{32, 64, 128, 0};
constexpr std::array<Activation, 4> kActivations{Activation::kSilu, Activation::kClampedSwiglu, Activation::kGeluTanh,
                                                 Activation::kRelu2};
constexpr std::array<const char*, 5> kRoutingNames{"Uniform", "Zipf", "AllToOne", "HalfEmpty", "PartlyHere"};
constexpr std::array<const char*, 4> kActivationNames{"Silu", "Clamped", "Gelu", "Relu2"};
constexpr std::array<const char*, 3> kSharedNames{"", "_Shared", "_SharedGated"};
constexpr std::array<const char*, 4> kInputNames{"Ids", "SoftmaxTopK", "TopKSoftmax", "Sigmoid"};
constexpr std::array<const char*, 3> kSourceNames{"Uint4b8", "Int4", "Int8"};

template <typename Values>
auto value_of(const Values& values, const Assignment& assignment, Factor factor) {
  return values[static_cast<size_t>(assignment[factor])];
}
bool both_set(const Assignment& assignment, Factor a, Factor b) {
  return assignment[a] != kUnset && assignment[b] != kUnset;
}

}  // namespace

const std::vector<HiddenWidth>& listed_shapes() {
  static const std::vector<HiddenWidth> shapes{{128, 256},   {512, 512},   {2048, 768},  {2048, 1024}, {4096, 14336},
                                               {7168, 2048}, {2880, 2880}, {4096, 1408}, {4096, 2112}, {2560, 640}};
  return shapes;
}

const std::vector<int>& factor_levels() {
  static const std::vector<int> levels{static_cast<int>(kTokenCounts.size()),
                                       static_cast<int>(listed_shapes().size()),
                                       static_cast<int>(kExpertCounts.size()),
                                       static_cast<int>(kChoices.size()),
                                       static_cast<int>(kRoutingNames.size()),
                                       static_cast<int>(kGroups.size()),
                                       2,
                                       static_cast<int>(kActivations.size()),
                                       2,
                                       static_cast<int>(kSharedNames.size()),
                                       2,
                                       static_cast<int>(kInputNames.size()),
                                       static_cast<int>(kSourceNames.size())};
  return levels;
}

bool legal_for_layer(const Assignment& a) {
  if (both_set(a, kShape, kGroup)) {
    const HiddenWidth shape = value_of(listed_shapes(), a, kShape);
    const int64_t group = value_of(kGroups, a, kGroup);
    if (group != 0 && (shape.hidden % group != 0 || shape.width % group != 0)) return false;
  }
  if (both_set(a, kExperts, kTopK) && value_of(kChoices, a, kTopK) > value_of(kExpertCounts, a, kExperts)) return false;
  return !both_set(a, kTopK, kWeightOnInput) || a[kWeightOnInput] == 0 || value_of(kChoices, a, kTopK) == 1;
}

bool legal_for_test(const Assignment& a) {
  if (!legal_for_layer(a)) return false;
  const bool half_empty = a[kRoutingFactor] == static_cast<int>(Routing::kHalfEmpty);
  if (!half_empty || a[kExperts] == kUnset) return true;
  const int64_t used = value_of(kExpertCounts, a, kExperts) / 2;
  return used >= (a[kTopK] == kUnset ? 1 : value_of(kChoices, a, kTopK));
}

LayerSpec spec_of(const Assignment& a) {
  LayerSpec spec;
  spec.tokens = value_of(kTokenCounts, a, kTokens);
  spec.hidden = value_of(listed_shapes(), a, kShape).hidden;
  spec.width = value_of(listed_shapes(), a, kShape).width;
  spec.experts = value_of(kExpertCounts, a, kExperts);
  spec.top_k = value_of(kChoices, a, kTopK);
  spec.routing = static_cast<Routing>(a[kRoutingFactor]);
  spec.group = value_of(kGroups, a, kGroup);
  spec.numerics = static_cast<Numerics>(a[kNumericsFactor]);
  spec.activation = value_of(kActivations, a, kActivationFactor);
  spec.bias = a[kBias] != 0;
  spec.shared = static_cast<Shared>(a[kSharedFactor]);
  spec.weight_on_input = a[kWeightOnInput] != 0;
  spec.input = static_cast<RouteInput>(a[kInput]);
  spec.source = static_cast<W4Source>(a[kSource]);
  return spec;
}

std::string LayerSpec::name() const {
  std::string text = fmt::format(
      "T{}_H{}_I{}_E{}_K{}_{}_{}_{}_{}", tokens, hidden, width, experts, top_k,
      kRoutingNames[static_cast<size_t>(routing)], group == 0 ? std::string("Channel") : fmt::format("G{}", group),
      numerics == Numerics::kExact ? "Exact" : "Vllm", kActivationNames[static_cast<size_t>(activation)]);
  text += bias ? "_Bias" : "";
  text += kSharedNames[static_cast<size_t>(shared)];
  text += weight_on_input ? "_WeightOnInput" : "";
  text += fmt::format("_{}_{}", kInputNames[static_cast<size_t>(input)], kSourceNames[static_cast<size_t>(source)]);
  text += nonfinite ? "_Nonfinite" : "";
  if (num_ranks > 1) text += fmt::format("_Rank{}of{}", rank, num_ranks);
  return text;
}

moe::RouterRule LayerSpec::rule() const {
  moe::RouterRule rule;
  rule.num_experts = experts;
  rule.top_k = top_k;
  rule.weight_on_input = weight_on_input;
  rule.renormalise = seed % 2 == 0;
  if (input == RouteInput::kSoftmaxAfter) {
    rule.scoring = moe::Scoring::kSoftmaxAfterTopK;
    rule.renormalise = false;
  }
  if (input == RouteInput::kSigmoid) {
    rule.scoring = moe::Scoring::kSigmoid;
    rule.renormalise = top_k > 1;
    rule.renorm_epsilon = 1e-20f;
    rule.routed_scaling = 2.5f;
    const bool groups = experts % 4 == 0 && experts / 2 >= top_k && experts >= 8;
    rule.num_groups = groups ? 4 : 1;
    rule.groups_kept = groups ? 2 : 1;
  }
  return rule;
}

std::vector<int32_t> LayerSpec::expert_map() const {
  std::vector<int32_t> map;
  if (num_ranks <= 1 && routing != Routing::kPartlyHere) return map;
  int32_t here = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const bool mine =
        num_ranks > 1 ? e * num_ranks / experts == rank : e == 0 || hash(seed, 900 + static_cast<uint64_t>(e)) % 2 == 0;
    map.push_back(mine ? here++ : -1);
  }
  return map;
}

int64_t LayerSpec::experts_here() const {
  const std::vector<int32_t> map = expert_map();
  if (map.empty()) return experts;
  int64_t here = 0;
  for (int32_t expert : map) here += expert >= 0 ? 1 : 0;
  return here;
}

kernels::ActivationRule LayerSpec::activation_rule() const {
  kernels::ActivationRule rule;
  rule.kind = activation;
  return rule;
}

std::vector<LayerSpec> covering_cases() {
  std::vector<LayerSpec> cases;
  for (const Assignment& assignment : covering_array(factor_levels(), legal_for_test)) {
    LayerSpec spec = spec_of(assignment);
    spec.seed = 1000 + cases.size();
    cases.push_back(spec);
  }
  return cases;
}

std::vector<LayerSpec> shape_cases() {
  constexpr std::array<int64_t, 3> kCounts{1, 64, 4096};
  std::vector<LayerSpec> cases;
  for (const HiddenWidth& shape : listed_shapes()) {
    for (int64_t tokens : kCounts) {
      LayerSpec spec;
      spec.seed = 2000 + cases.size();
      spec.tokens = tokens;
      spec.hidden = shape.hidden;
      spec.width = shape.width;
      const bool wide = shape.width > 8192;
      spec.experts = wide ? 8 : 128;
      spec.top_k = wide ? 2 : shape.hidden == 2880 ? 4 : 8;
      spec.group = shape.hidden % 128 == 0 && shape.width % 128 == 0 ? 128 : shape.hidden == 2880 ? 32 : 64;
      spec.routing = cases.size() % 2 == 0 ? Routing::kUniform : Routing::kZipf;
      spec.input = RouteInput::kSoftmaxBefore;
      spec.bias = shape.hidden == 2880;
      spec.activation = shape.hidden == 2880 ? Activation::kClampedSwiglu : Activation::kSilu;
      spec.numerics = cases.size() % 4 < 2 ? Numerics::kExact : Numerics::kVllm;
      cases.push_back(spec);
    }
  }
  return cases;
}

std::vector<LayerSpec> field_cases() {
  struct Shape {
    int64_t tokens, width, hidden;
  };
  std::vector<LayerSpec> cases;
  const auto add = [&](LayerSpec spec) {
    spec.seed = 3000 + cases.size();
    cases.push_back(spec);
  };
  for (const Shape& s : {Shape{1, 128, 256}, Shape{32, 512, 512}, Shape{222, 1024, 2048}}) {
    for (int64_t experts : {8, 64}) {
      for (int64_t top_k : {2, 6}) {
        LayerSpec spec;
        spec.tokens = s.tokens;
        spec.width = s.width;
        spec.hidden = s.hidden;
        spec.experts = experts;
        spec.top_k = top_k;
        add(spec);
        spec.numerics = Numerics::kVllm;
        spec.shared = Shared::kGated;
        spec.input = RouteInput::kSoftmaxBefore;
        add(spec);
        spec.shared = Shared::kNone;
        spec.num_ranks = top_k == 2 ? 2 : 4;
        for (spec.rank = 0; spec.rank < spec.num_ranks; ++spec.rank) add(spec);
        if (s.width % 256 != 0) continue;
        // A tensor-parallel shard of whole groups: the width of one rank of four.
        LayerSpec shard = spec;
        shard.num_ranks = 1;
        shard.rank = 0;
        shard.width = s.width / 4;
        add(shard);
      }
    }
    LayerSpec weighed;
    weighed.tokens = s.tokens;
    weighed.width = s.width;
    weighed.hidden = s.hidden;
    weighed.experts = 8;
    weighed.weight_on_input = true;
    weighed.shared = Shared::kPlain;
    add(weighed);
  }
  for (int64_t tokens : {1, 2, 4, 8, 16}) {
    LayerSpec spec;
    spec.tokens = tokens;
    spec.hidden = 7168;
    spec.width = 1024;  // N = 2048 rows of gate and up
    spec.experts = 256;
    spec.top_k = 8;
    spec.input = RouteInput::kSigmoid;
    add(spec);
  }
  return cases;
}

std::vector<LayerSpec> nonfinite_cases() {
  std::vector<LayerSpec> cases;
  for (Activation activation : kActivations) {
    for (Numerics numerics : {Numerics::kExact, Numerics::kVllm}) {
      LayerSpec spec;
      spec.seed = 4000 + cases.size();
      spec.tokens = 33;
      spec.hidden = 512;
      spec.width = 256;
      spec.experts = 8;
      spec.top_k = cases.size() % 4 == 1 ? 1 : 4;
      spec.weight_on_input = cases.size() % 4 == 1;
      spec.group = cases.size() % 2 == 0 ? 128 : 32;
      spec.numerics = numerics;
      spec.activation = activation;
      spec.bias = cases.size() % 2 == 1;
      spec.shared = cases.size() % 3 == 0 ? Shared::kGated : Shared::kNone;
      spec.input = static_cast<RouteInput>(cases.size() % 4);
      spec.nonfinite = true;
      cases.push_back(spec);
    }
  }
  return cases;
}

std::vector<LayerSpec> sanitize_cases() {
  std::vector<LayerSpec> cases;
  const auto add = [&](int64_t tokens, HiddenWidth shape, int64_t group, int64_t experts, int64_t top_k) -> LayerSpec& {
    LayerSpec spec;
    spec.seed = 5000 + cases.size();
    spec.tokens = tokens;
    spec.hidden = shape.hidden;
    spec.width = shape.width;
    spec.group = group;
    spec.experts = experts;
    spec.top_k = top_k;
    spec.numerics = cases.size() % 2 == 0 ? Numerics::kExact : Numerics::kVllm;
    spec.source = static_cast<W4Source>(cases.size() % 3);
    spec.activation = kActivations[cases.size() % kActivations.size()];
    spec.input = static_cast<RouteInput>((cases.size() + 1) % kInputNames.size());
    cases.push_back(spec);
    return cases.back();
  };
  add(33, {256, 128}, 128, 5, 2).shared = Shared::kGated;
  add(7, {192, 96}, 32, 7, 3).bias = true;
  add(16, {128, 192}, 64, 3, 1).weight_on_input = true;
  add(1, {160, 72}, 0, 60, 4).routing = Routing::kUniform;
  add(33, {320, 64}, 64, 8, 2).routing = Routing::kPartlyHere;
  add(2, {128, 128}, 128, 130, 8).shared = Shared::kPlain;
  add(17, {256, 256}, 32, 1, 1).bias = true;
  add(33, {136, 264}, 0, 9, 4).routing = Routing::kAllToOne;
  return cases;
}

std::vector<LayerSpec> guard_cases() {
  struct Shape {
    int64_t hidden, width, group;
  };
  constexpr Shape kShapes[] = {{128, 64, 64},   {136, 72, 0},  {192, 96, 32}, {8, 8, 0},
                               {128, 128, 128}, {64, 320, 32}, {200, 24, 0},  {256, 64, 64}};
  constexpr int64_t kMostExperts = 130;
  std::vector<LayerSpec> cases;
  for (int64_t experts = 1; experts <= kMostExperts; ++experts) {
    const auto turn = static_cast<uint64_t>(experts);
    const Shape& shape = kShapes[turn % std::size(kShapes)];
    LayerSpec spec;
    spec.seed = 6000 + turn;
    spec.experts = experts;
    spec.hidden = shape.hidden;
    spec.width = shape.width;
    spec.group = shape.group;
    spec.tokens = static_cast<int64_t>(hash(1, turn) % 37);
    spec.top_k = std::min<int64_t>(experts, 1 + static_cast<int64_t>(hash(2, turn) % 8));
    spec.numerics = static_cast<Numerics>(turn / 2 % 2);
    spec.activation = kActivations[turn / 3 % kActivations.size()];
    spec.source = static_cast<W4Source>(turn % 3);
    spec.input = static_cast<RouteInput>(turn / 5 % kInputNames.size());
    spec.routing = experts == 1 ? Routing::kUniform : static_cast<Routing>(turn / 7 % kRoutingNames.size());
    if (spec.routing == Routing::kHalfEmpty) spec.top_k = std::min(spec.top_k, experts / 2);
    spec.bias = turn % 2 == 1;
    spec.shared = static_cast<Shared>(turn / 11 % 3);
    spec.weight_on_input = spec.top_k == 1 && turn % 3 != 0;
    cases.push_back(spec);
  }
  return cases;
}

}  // namespace quadrille::testing
