// SPDX-License-Identifier: Apache-2.0
// Stores -> modules: paths from the family's names, shapes and formats from the stores.
#include "model/prepared_sources.h"

#include "layout/bf16_lanes16.h"
#include "layout/w4_lanes16.h"
#include "model/prepared_sections.h"

namespace quadrille::model {
namespace {

// Says that a module has a bias; nothing of it is read.
const formats::TensorView kSomeBias;

ModuleSource module(const std::string& path, ModuleKind kind, std::vector<int64_t> shape) {
  ModuleSource source;
  source.path = path;
  source.kind = kind;
  source.shape = std::move(shape);
  source.decision.rule = "prepared so";
  return source;
}

ModuleSource linear(const std::string& path, ModuleKind kind, const LinearStore& store, int64_t n) {
  ModuleSource source = module(path, kind, {n, store.k});
  if (store.is_w4) {
    source.decision.kind = formats::QuantizationKind::kW4A8;
    source.decision.group_size = store.group_size;
  }
  if (!store.bias.empty()) source.bias = &kSomeBias;
  return source;
}

MlpSources mlp(const std::string& gate, const std::string& up, const std::string& down, ModuleKind kind,
               const MlpStore& store) {
  const int64_t width = store.gate_up.n / 2;
  return {linear(gate, kind, store.gate_up, width), linear(up, kind, store.gate_up, width),
          linear(down, kind, store.down, store.down.n)};
}

LayerSources layer_sources(const LayerStore& store, const ModelConfig& config, int64_t l) {
  const TensorNames& names = config.names;
  const auto path = [&](const std::string& name) { return names.layer_path(l, name); };
  const auto norm = [&](const std::string& name, const NormStore& values) {
    return module(path(name), ModuleKind::kNorm, {static_cast<int64_t>(values.size())});
  };
  const auto attention = [&](const std::string& name, const LinearStore& matrix) {
    return linear(path(name), ModuleKind::kAttention, matrix, matrix.n);
  };
  LayerSources layer;
  layer.input_norm = norm(names.input_norm, store.input_norm);
  layer.post_attention_norm = norm(names.post_attention_norm, store.post_attention_norm);
  layer.q = attention(names.q, store.q);
  layer.k = attention(names.k, store.k);
  layer.v = attention(names.v, store.v);
  layer.o = attention(names.o, store.o);
  if (!store.q_norm.empty()) layer.q_norm = norm(names.q_norm, store.q_norm);
  if (!store.k_norm.empty()) layer.k_norm = norm(names.k_norm, store.k_norm);
  for (int64_t e = 0; e < store.experts.gate_up.num_matrices(); ++e) {
    layer.experts.push_back(mlp(names.layer_path(l, names.expert_gate, e), names.layer_path(l, names.expert_up, e),
                                names.layer_path(l, names.expert_down, e), ModuleKind::kExpert, store.experts));
  }
  if (!store.router.empty()) {
    layer.router = module(path(names.router), ModuleKind::kRouter, {config.router.num_experts, config.hidden_size});
  }
  if (store.shared.gate_up.num_matrices() > 0) {
    layer.shared = mlp(path(names.shared_gate_proj), path(names.shared_up), path(names.shared_down),
                       ModuleKind::kSharedExpert, store.shared);
  }
  if (!store.shared_gate.empty()) {
    layer.shared_gate = module(path(names.shared_gate), ModuleKind::kRouter, {1, config.hidden_size});
  }
  if (store.dense.gate_up.num_matrices() > 0) {
    layer.dense =
        mlp(path(names.dense_gate), path(names.dense_up), path(names.dense_down), ModuleKind::kDense, store.dense);
  }
  return layer;
}

bool is_rows(const ModuleSource& source) {
  return source.kind == ModuleKind::kNorm || source.kind == ModuleKind::kRouter ||
         source.kind == ModuleKind::kEmbedding;
}

}  // namespace

ModelSources prepared_sources(const ModelWeights& weights, const ModelConfig& config) {
  const std::vector<int64_t> table = {config.vocab_size, config.hidden_size};
  ModelSources sources;
  sources.embedding = module(config.names.embedding, ModuleKind::kEmbedding, table);
  sources.final_norm = module(config.names.final_norm, ModuleKind::kNorm, {config.hidden_size});
  if (config.tie_word_embeddings) {
    sources.embedding = linear(config.names.embedding, ModuleKind::kLmHead, weights.lm_head, config.vocab_size);
  } else {
    sources.lm_head = linear(config.names.lm_head, ModuleKind::kLmHead, weights.lm_head, config.vocab_size);
  }
  for (int64_t l = 0; l < config.num_layers; ++l) {
    sources.layers.push_back(layer_sources(weights.layers[static_cast<size_t>(l)], config, l));
  }
  return sources;
}

std::string prepared_storage(const ModuleSource& source) {
  const layout::LayoutTag tag = source.quantised() ? layout::kW4Lanes16Tag
                                : is_rows(source)  ? kBf16RowsTag
                                                   : layout::kBf16Lanes16Tag;
  return fmt::format("{} {}", tag.name, tag.version);
}

uint64_t prepared_bytes(const ModuleSource& source) {
  if (is_rows(source)) return static_cast<uint64_t>(source.n() * source.k()) * sizeof(uint16_t);
  moe::MatrixKind kind;
  kind.is_w4 = source.quantised();
  kind.n = source.n();
  kind.k = source.k();
  kind.group_size = source.decision.group_size;
  kind.has_bias = source.bias != nullptr;
  return run_bytes(kind);
}

}  // namespace quadrille::model
