// SPDX-License-Identifier: Apache-2.0
// A model as the planner sees it: its dimensions, how each linear layer is stored, every matrix with the rule by which
// ranks cut it. Architectures that this engine does not run yet have a description here, too. Called by plan.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/hf_config.h"
#include "layout/shard_plan.h"
#include "model/config.h"

namespace quadrille::plan {

// How a linear layer is stored: W4A8 with that group (0: one scale a channel), or bf16.
struct LinearForm {
  bool is_w4 = true;
  int64_t group_size = 128;
};

struct LayerForms {
  LinearForm q, k, v, o;
  LinearForm experts_up, experts_down;  // gate and up are decided alike
  LinearForm shared_up, shared_down;
  LinearForm dense_up, dense_down;
};

// Multi-head latent attention: the cache holds kv_rank + rope_dim values a token, whole on every rank. In the
// ModelConfig beside it head_dim is that of the values, and every query head is its own KV head.
struct LatentAttention {
  int64_t q_rank = 0;  // 0: queries straight from the hidden state
  int64_t kv_rank = 0;
  int64_t nope_dim = 0, rope_dim = 0, value_dim = 0;
};

struct PlanShape {
  std::string name;
  model::ModelConfig config;
  std::string why_not_run;  // empty where this engine runs the architecture
  std::optional<LatentAttention> latent;
  bool has_sinks = false;          // a number a query head
  bool has_router_bias = false;    // a number an expert, added to or beside the logits
  bool has_expert_biases = false;  // of gate, up and down of every expert
  std::vector<LayerForms> forms;   // [num_layers]
  std::string weights;             // where the forms come from
};

struct ShapeOptions {
  std::optional<int64_t> group_size;  // instead of what the file, or the default (128), says
};

// Forms: the file's compressed-tensors decisions where it has any, else W4A8 for all linear layers but the head.
// Errors: kUnsupported for an architecture that is not described (names those that are) and for a group that does not
// divide a matrix, with the legal ones; kInvalidData as in make_model_config().
Result<PlanShape> make_plan_shape(const std::string& name, const formats::HfConfig& raw, const ShapeOptions& options);

enum class PlanPart { kEmbedding, kAttention, kRouter, kExperts, kShared, kDense, kNorms, kHead };
inline constexpr int kNumPlanParts = 8;
const char* plan_part_name(PlanPart part);

enum class PlanCut {
  kWhole,
  kVocabulary,
  kHeads,    // n = rows_per_head for each query head
  kKvHeads,  // n = rows_per_head for each KV head
  kOutput,   // columns of the query heads
  kGateUp,   // gate and up, stacked [2 * width, hidden]
  kDown,
};

struct PlanMatrix {
  PlanPart part = PlanPart::kNorms;
  PlanCut cut = PlanCut::kWhole;
  int64_t layer = 0;
  int64_t count = 1;  // experts
  int64_t n = 0, k = 1;
  LinearForm form{false, 0};
  bool has_bias = false;
  bool is_f32 = false;     // no bf16 but fp32 numbers
  bool row_major = false;  // of no product: norms, embedding, router
  int64_t rows_per_head = 0;
  layout::MlpShard layout::LayerShard::*mlp = nullptr;
};

// Every matrix and vector of the model, once. A tied head is the embedding.
std::vector<PlanMatrix> plan_matrices(const PlanShape& shape);
// What layout::plan_shards() cuts.
layout::ModelShape shard_shape(const PlanShape& shape);

// All numbers of the model, without scales; and those that a token's products read: of the routed experts the chosen
// ones, of the embedding nothing unless it is the head.
int64_t num_parameters(const PlanShape& shape);
int64_t num_active_parameters(const PlanShape& shape);

// Numbers that the cache keeps for a token in one layer, on a rank with so many KV heads.
int64_t cache_values(const PlanShape& shape, int64_t kv_heads);

}  // namespace quadrille::plan
