// SPDX-License-Identifier: Apache-2.0
// The prepared weights of a model and their owner; the decoder sees views (decoder.h). Filled by load_weights.cpp from
// a checkpoint or by random_weights.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/decoder.h"
#include "moe/placement.h"
#include "prepare/prepare_bf16.h"
#include "prepare/prepare_w4.h"

namespace quadrille::model {

// The matrices of one linear layer, or of one projection of all experts of a layer: all bf16 or all 4-bit.
struct LinearStore {
  int64_t n = 0, k = 0, group_size = 0;
  std::vector<prepare::PreparedBf16> bf16;  // [num_experts], or empty
  std::vector<prepare::PreparedW4> w4;      // [num_experts], or empty
  std::vector<float> bias;                  // [n] of a single matrix, or empty
  bool is_w4 = false;                       // which kind, also where there is no matrix

  // Sizes the store for `num_experts` matrices of either kind; zero is fine.
  void reserve(int64_t num_experts, bool quantised);
  int64_t num_matrices() const { return static_cast<int64_t>(is_w4 ? w4.size() : bf16.size()); }
  // Makes the tables of pointers that view() hands out; call when all matrices stand in their place.
  void seal();
  moe::Linear view() const;
  uint64_t bytes() const;

 private:
  std::vector<kernels::W4Matrix> w4_views_;
  std::vector<const uint16_t*> bf16_views_;
  const float* bias_view_ = nullptr;
};

struct MlpStore {
  LinearStore gate_up, down;
  int64_t width = 0;        // columns that this rank holds; one rank: all
  int64_t down_offset = 0;  // zeros in front of them in a row of down's input (moe::GatedMlp)
  uint64_t bytes() const { return gate_up.bytes() + down.bytes(); }
};

using NormStore = std::vector<uint16_t>;  // bf16

struct LayerStore {
  NormStore input_norm, post_attention_norm, q_norm, k_norm;
  LinearStore q, k, v, o;
  MlpStore experts, shared, dense;  // those that the layer has
  // Which expert-parallel rank holds which experts; none: all are here. Else `experts` has one matrix a slot of
  // expert_rank, empty ones in free slots.
  std::optional<moe::Placement> placement;
  int expert_rank = 0;
  std::vector<uint16_t> router, shared_gate;  // [num_experts, hidden], [1, hidden] bf16
  moe::ExpertGuard* guard = nullptr;          // of experts in a mapped file (first_use.h)

  uint64_t bytes() const;
};

class FirstUse;

struct ModelWeights {
  std::shared_ptr<FirstUse> first_use;         // of weights that lie in a mapped file, which it keeps; else null
  std::vector<uint16_t> embedding;             // [vocab, hidden] bf16; empty where tied: lm_head has the rows
  std::span<const uint16_t> mapped_embedding;  // instead of `embedding`, in the file
  std::vector<LayerStore> layers;
  NormStore final_norm;
  LinearStore lm_head;

  // Seals every store and returns views, valid until the weights move.
  DecoderView seal(const ModelConfig& config);
  // Again for the experts of one layer, after some came or went.
  void seal_experts(int64_t layer, const ModelConfig& config, DecoderView* view);
  uint64_t bytes() const;
  uint64_t expert_bytes() const;
  // What one token reads: everything but the embedding and the experts that it is not sent to.
  uint64_t bytes_read_per_token(const ModelConfig& config) const;
};

}  // namespace quadrille::model
