// SPDX-License-Identifier: Apache-2.0
// How far the sums of several ranks may lie from those of one rank: docs/parallel.md has the derivation. An observer of
// the model of one rank collects what the bounds are made of.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "kernels/api/problems.h"
#include "model/observer.h"
#include "moe/layer_observer.h"

namespace quadrille::cli {

struct SumRules {
  int ranks = 1;               // of the other model; one: everything is equal bit for bit
  bool rounds_to_bf16 = true;  // round bf16
  bool tensor_core = false;    // the table adds as a Hopper tensor core does
  bool weight_on_input = false;
};

// Bounds of what comes after the stages that it was shown.
class SumBounds {
 public:
  explicit SumBounds(const SumRules& rules) : rules_(rules) {}
  void see(model::Module module, const moe::Stage& stage);
  void see_routes(const float* weights, int64_t num_tokens, int64_t top_k);
  // Of the sum over ranks of the partial rows of a feed-forward's second product, against the rows of one rank: for
  // each value of the gemm2_out shown last in `module`.
  std::vector<float> partial_rows(model::Module module) const;
  // Of what `module` adds to the residual stream, y [num_tokens, width] being that of one rank.
  std::vector<float> update(model::Module module, const float* y, int64_t num_tokens, int64_t width) const;

 private:
  struct Rows {
    int64_t k = 0;      // that the product sums over
    int64_t width = 0;  // of its output
    std::vector<float> values;
  };
  double chain(int64_t k) const;
  std::vector<float> row_noise(const Rows& rows, const float* y, int64_t count) const;
  void add_rows(model::Module module, int64_t num_tokens, int64_t width, std::vector<double>* sum) const;

  SumRules rules_;
  std::map<model::Module, Rows> rows_;
  std::vector<int32_t> slot_of_route_;
  std::vector<float> weights_;
  int64_t top_k_ = 0;
};

// Moves every sum of a step by its whole bound, up or down at random: what ranks can do at worst to each value, without
// knowing the direction.
class Perturbation : public model::StepObserver {
 public:
  Perturbation(const SumRules& rules, uint64_t seed) : rules_(rules), bounds_(rules), random_(seed) {}
  bool wants_stages() const override { return true; }
  void stage(int64_t layer, model::Module module, const moe::Stage& stage) override;
  void router(int64_t layer, const float* logits, const int32_t* ids, const float* weights, int64_t num_tokens,
              int64_t num_experts, int64_t top_k) override;
  void update(int64_t layer, model::Module module, float* y, int64_t num_tokens, int64_t width) override;

 private:
  SumRules rules_;
  SumBounds bounds_;
  std::mt19937_64 random_;
};

}  // namespace quadrille::cli
