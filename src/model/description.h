// SPDX-License-Identifier: Apache-2.0
// What inspect shows of a folder: architecture, the quantisation decision of each module with its rule, sizes, legal
// tensor-parallel sizes. Read from headers alone; no weight is touched.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/result.h"
#include "formats/compressed_tensors.h"
#include "model/config.h"
#include "model/tp_legality.h"

namespace quadrille::model {

struct ModuleDescription {
  std::string path;  // "model.layers.0.self_attn.q_proj"
  std::string kind;  // "embedding", "norm", "attention", "router", "expert", "shared_expert", "dense", "lm_head"
  std::vector<int64_t> shape;  // [N, K] of a matrix, [N] of a norm: what the config says
  formats::QuantizationDecision decision;
  std::string storage;      // "BF16", "I32 pack-quantized", "I8 int-quantized"; prepared: the layout, "w4_lanes16 1"
  uint64_t disk_bytes = 0;  // with scales and bias
  int64_t parameters = 0;
};

struct ModelDescription {
  std::string folder;
  ModelConfig config;
  std::string quantization_format;  // of the file: "pack-quantized", "" where nothing is quantised
  std::vector<ModuleDescription> modules;
  std::vector<std::string> unused_tensors;  // in the folder, not part of the model (draft layers and the like)
  std::vector<std::string> shards;
  int64_t parameters = 0;
  int64_t active_parameters = 0;           // that one token reads
  uint64_t disk_bytes = 0;                 // of the tensors that are used
  uint64_t weight_memory_bytes = 0;        // prepared for the CPU tables in `exact`
  uint64_t kv_bytes_per_position = 0;      // bf16 cache
  PlannedModel plan;                       // how tensor-parallel ranks would cut it: rank_shares(plan, ranks)
  std::vector<TpVerdict> tensor_parallel;  // 1..8
};

// Checks names, types and shapes of every tensor, or of every section of a prepared folder, against config.json on the
// way. Errors as in Model::load.
Result<ModelDescription> describe_model(const std::string& folder, const LogSink& log = no_log());

}  // namespace quadrille::model
