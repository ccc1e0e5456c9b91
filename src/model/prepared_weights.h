// SPDX-License-Identifier: Apache-2.0
// A model's weights as sections of a prepared file, both ways: write_* from stores in memory, load_prepared() to stores
// that compute from the mapping. Called by model.cpp, describe.cpp and prepare_folder.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "formats/prepared_file.h"
#include "model/config.h"
#include "model/weights.h"
#include "moe/placement.h"

namespace quadrille::model {

// Name of a numerics in the head of the file.
std::string arithmetic_name(kernels::Numerics numerics);

// Embedding, last norm, lm_head; then each layer with all its experts.
Status write_ends(const ModelWeights& weights, formats::PreparedWriter* writer);
Status write_layer(const LayerStore& layer, int64_t index, const ModelConfig& config, formats::PreparedWriter* writer);

struct PreparedOptions {
  std::optional<kernels::Numerics> numerics;  // that the model is to compute in; none: those of the file
  ThreadPool* pool = nullptr;                 // required; must outlive the weights
  const moe::Placement* placement = nullptr;  // of every layer's experts; null: all are here
  int expert_rank = 0;
};
struct PreparedWeights {
  ModelWeights weights;  // views of the mapping, which weights.first_use keeps
  kernels::Numerics numerics = kernels::Numerics::kExact;
  std::vector<std::string> notes;  // of the preparation
};

// Opens FOLDER's file and compares what it holds with `config`. Copies and checks vectors (norms, routers, biases),
// maps the rest: first_use says when that is checked. Errors: those of PreparedFile::open(); kInvalidData and
// kUnsupported with section, expected and found, for a section that is missing, that has another layout tag or version,
// another shape; kInvalidArgument for other numerics than asked.
Result<PreparedWeights> load_prepared(const std::string& folder, const ModelConfig& config,
                                      const PreparedOptions& options);

// Reads everything: each section against its checksum, each expert's blob against its own, the gaps. `pool` reads.
struct PreparedCheck {
  uint64_t sections = 0, bytes = 0;
};
Result<PreparedCheck> check_prepared(const std::string& folder, const ModelConfig& config, ThreadPool* pool);

}  // namespace quadrille::model
