// SPDX-License-Identifier: Apache-2.0
// Every module that a model needs, found in the checkpoint and checked: the decision of the quantisation config, names,
// types and shapes, before any weight is touched. Made once by the loader and by inspect.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/result.h"
#include "formats/checkpoint.h"
#include "formats/compressed_tensors.h"
#include "model/config.h"

namespace quadrille::model {

enum class ModuleKind {
  kEmbedding,
  kNorm,       // a vector
  kAttention,  // q, k, v, o
  kRouter,     // also the gate of a shared expert: read by the router's kernel, always bf16
  kExpert,
  kSharedExpert,
  kDense,
  kLmHead,
};
const char* module_kind_name(ModuleKind kind);

// One module and its tensors. Views point into the checkpoint.
struct ModuleSource {
  std::string path;  // without ".weight"
  ModuleKind kind = ModuleKind::kNorm;
  std::vector<int64_t> shape;  // [N, K], or [N] of a norm
  formats::QuantizationDecision decision;
  const formats::TensorView* weight = nullptr;  // .weight [N, K], or .weight_packed I32 [N, ceil(K/8)]
  const formats::TensorView* scale = nullptr;   // [N, groups] of a quantised module
  const formats::TensorView* bias = nullptr;    // [N]

  int64_t n() const { return shape[0]; }
  int64_t k() const { return shape.size() > 1 ? shape[1] : 1; }
  bool quantised() const { return decision.kind != formats::QuantizationKind::kUnquantized; }
  uint64_t disk_bytes() const;
};

// The modules by their place in the model.
struct MlpSources {
  ModuleSource gate, up, down;
};
struct LayerSources {
  ModuleSource input_norm, post_attention_norm;
  ModuleSource q, k, v, o;
  std::optional<ModuleSource> q_norm, k_norm;
  std::vector<MlpSources> experts;  // [num_experts], or empty
  std::optional<ModuleSource> router;
  std::optional<MlpSources> shared;
  std::optional<ModuleSource> shared_gate;
  std::optional<MlpSources> dense;
};

struct ModelSources {
  ModuleSource embedding, final_norm;
  std::optional<ModuleSource> lm_head;  // nothing where tied to the embedding
  std::vector<LayerSources> layers;

  // All modules in the order of the model.
  std::vector<const ModuleSource*> modules() const;
};

struct Inventory : ModelSources {
  Inventory(formats::Checkpoint tensors, std::optional<formats::QuantizationConfig> config)
      : checkpoint(std::move(tensors)), quantization(std::move(config)) {}
  formats::Checkpoint checkpoint;
  std::optional<formats::QuantizationConfig> quantization;
  std::vector<std::string> unused_tensors;
};

// Opens FOLDER's tensors and finds everything that `config` needs. `raw` gives the quantisation config. Errors:
// kNotFound and kInvalidData with file, tensor, expected and found; kUnsupported for a quantised router or embedding,
// for experts of a layer or halves of a gated layer that were decided differently, for shapes that the kernels do not
// run, and for fused expert stacks. W4A16 passes: the loader decides.
Result<Inventory> take_inventory(const std::string& folder, const formats::HfConfig& raw, const ModelConfig& config,
                                 const LogSink& log);

}  // namespace quadrille::model
