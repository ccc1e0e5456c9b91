// SPDX-License-Identifier: Apache-2.0
// Where the intermediates of a step lie on a GPU: parts of one workspace, sized for the largest step before anything is
// allocated. Called by device_decoder.cpp and by the memory plan of device_model.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/config.h"
#include "model/device_shard.h"
#include "model/device_weights.h"
#include "moe/device_workspace.h"

namespace quadrille::model {

// What a step may ask for; longer ones run in pieces.
struct StepSizes {
  int64_t max_tokens = 0;
  int64_t max_sequences = 0;
  int64_t max_logit_rows = 0;  // of one product of the lm_head
  int64_t max_positions = 0;   // that the page table covers
};

struct StepMemory {
  moe::Part block;              // StepBlock integers
  moe::Part x, normed, update;  // [tokens, hidden] bf16
  moe::Part other_x;            // where a kernel whose CTAs all read x puts the sums
  moe::Part act, act_scale;     // [tokens, act_pitch(hidden)] e4m3, [tokens]
  moe::Part qkv;                // [tokens, q + 2 kv] bf16
  moe::Part q, mixed;           // [tokens, q] bf16
  moe::Part mixed_act, mixed_scale;
  moe::Part attention;           // floats of kernels::DeviceAttention::workspace
  moe::Part attention_counters;  // zero between two steps
  moe::Part router_logits;
  moe::Part router_arrivals;  // kernels::kNormAndRouteWords, zero between two steps
  moe::Part moe;              // of run_device_layer, or of the bf16 experts
  // Dense feed-forward, and the shared expert beside bf16 experts: [tokens, width].
  moe::Part mlp_hidden, mlp_act, mlp_scale, mlp_rows, shared_gate;
  // The rows whose logits are wanted.
  moe::Part final_rows, final_act, final_scale;
  moe::Part logits;  // [logit rows, lm_head n] fp32
  // Of tensor-parallel ranks: partial sums [tokens, hidden] fp32, the scratch of row-parallel W4A8 layers, columns of
  // every rank one rank after the other, and whole rows of q and k where a norm spans them.
  moe::Part partial, row_parallel, gathered, own_columns, whole_q, whole_k;
  moe::Part own_logits;  // [logit rows, lm_head n] fp32: this rank's columns
  moe::Part tokens;      // [tokens] int32: the greedy choice of each logit row
  moe::Part status;
  size_t total = 0;
};
// `config`: of the rank (device_shard.h).
StepMemory plan_step_memory(const DeviceWeightsView& weights, const ModelConfig& config, const StepSizes& sizes,
                            const DeviceShard& shard = {}, const moe::DeviceRanks& ranks = {});
// Columns of a row of logits in memory.
int64_t logits_pitch(const DeviceWeightsView& weights, const ModelConfig& config, const DeviceShard& shard);

// Inside `moe` of a layer whose experts are bf16.
struct Bf16MoeParts {
  moe::Part ids, weights, offsets, route_of_slot, slot_of_route, scratch, tiles, num_tiles, hidden, rows, shared;
  size_t total = 0;
};
// `is_split`: the rows are fp32 partial sums, and the shared expert's [tokens, hidden], too.
Bf16MoeParts plan_bf16_moe(const ModelConfig& config, int64_t num_tokens, bool is_split = false);

}  // namespace quadrille::model
