// SPDX-License-Identifier: Apache-2.0
// Which layers the conformance tests run: the factors of the covering array with their legal combinations, and the
// listed extra cases. Plain data; tests/unit/conformance checks it on machines without a GPU.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "device/covering_array.h"
#include "kernels/api/device_problems.h"
#include "moe/router.h"

namespace quadrille::testing {

enum class Routing { kUniform, kZipf, kAllToOne, kHalfEmpty, kPartlyHere };
enum class Shared { kNone, kPlain, kGated };
enum class RouteInput { kIds, kSoftmaxBefore, kSoftmaxAfter, kSigmoid };

struct LayerSpec {
  int64_t tokens = 1;
  int64_t hidden = 128, width = 256;
  int64_t experts = 4;  // of the router
  int64_t top_k = 1;
  Routing routing = Routing::kUniform;
  int64_t group = 128;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Activation activation = kernels::Activation::kSilu;
  bool bias = false;
  Shared shared = Shared::kNone;
  bool weight_on_input = false;
  RouteInput input = RouteInput::kIds;
  kernels::W4Source source = kernels::W4Source::kUint4b8;
  bool nonfinite = false;
  int64_t rank = 0, num_ranks = 1;  // expert parallel with equal parts where num_ranks > 1
  uint64_t seed = 1;

  std::string name() const;
  // The router rule: scoring of `input`, groups and scaling for sigmoid.
  moe::RouterRule rule() const;
  // Router expert -> expert here or -1 for kPartlyHere and ranks; empty: all are here.
  std::vector<int32_t> expert_map() const;
  int64_t experts_here() const;
  kernels::ActivationRule activation_rule() const;
};

// GoogleTest's words for a case.
inline void PrintTo(const LayerSpec& spec, std::ostream* out) {
  *out << spec.name();
}

// The factors, in the order of an Assignment.
enum Factor : int {
  kTokens,
  kShape,
  kExperts,
  kTopK,
  kRoutingFactor,
  kGroup,
  kNumericsFactor,
  kActivationFactor,
  kBias,
  kSharedFactor,
  kWeightOnInput,
  kInput,
  kSource,
  kNumFactors,
};
struct HiddenWidth {
  int64_t hidden, width;
};
const std::vector<HiddenWidth>& listed_shapes();
const std::vector<int>& factor_levels();
// The rules of the layer itself: what breaks one is a typed error of can_run.
bool legal_for_layer(const Assignment& assignment);
// And the rule of the test: enough experts for the routing pattern.
bool legal_for_test(const Assignment& assignment);
LayerSpec spec_of(const Assignment& assignment);

std::vector<LayerSpec> covering_cases();
// Every listed (H, I) at T = 1, 64, 4096, near the model's own experts and choices.
std::vector<LayerSpec> shape_cases();
// The test matrices of the field: vLLM's MoE layer (with expert parallel ranks), SGLang's W4A8 shape.
std::vector<LayerSpec> field_cases();
// NaN, infinities and the largest bf16 in the activations, NaN rows of logits.
std::vector<LayerSpec> nonfinite_cases();
// Small ones that meet every kernel, for compute-sanitizer.
std::vector<LayerSpec> sanitize_cases();
// 1 to 130 experts at small odd shapes, everything else turning with their number: between guard pages.
std::vector<LayerSpec> guard_cases();

}  // namespace quadrille::testing
