// SPDX-License-Identifier: Apache-2.0
// The inventory as the shard plan sees it: which dimension of each module is cut.
#include "model/inventory.h"
#include "model/tp_legality.h"

namespace quadrille::model {
namespace {

using layout::KFormat;
using layout::LayerShard;

KFormat k_format(const ModuleSource& source) {
  return {source.k(), source.quantised(), source.quantised() ? source.decision.group_size : 0};
}

class Planner {
 public:
  explicit Planner(std::vector<PlannedModule>* modules) : modules_(*modules) {}

  PlannedModule& add(const ModuleSource& source, ModuleCut cut, int64_t layer = 0) {
    PlannedModule m;
    m.cut = cut;
    m.layer = layer;
    m.n = source.n();
    m.k = source.k();
    m.is_w4 = source.quantised();
    m.group_size = k_format(source).group_size;
    m.has_bias = source.bias != nullptr;
    m.row_major = source.kind == ModuleKind::kNorm || source.kind == ModuleKind::kRouter;
    modules_.push_back(m);
    return modules_.back();
  }

  void add_mlps(const MlpSources& one, int64_t count, int64_t layer, layout::MlpShard LayerShard::*mlp) {
    PlannedModule& gate_up = add(one.gate, ModuleCut::kGateUp, layer);
    gate_up.n = one.gate.n() + one.up.n();
    gate_up.count = count;
    gate_up.mlp = mlp;
    PlannedModule& down = add(one.down, ModuleCut::kDown, layer);
    down.count = count;
    down.mlp = mlp;
  }

  layout::LayerShape add_layer(const LayerSources& layer, int64_t index) {
    add(layer.input_norm, ModuleCut::kWhole, index);
    add(layer.post_attention_norm, ModuleCut::kWhole, index);
    add(layer.q, ModuleCut::kQuery, index);
    add(layer.k, ModuleCut::kKeyValue, index);
    add(layer.v, ModuleCut::kKeyValue, index);
    add(layer.o, ModuleCut::kOutput, index);
    for (const auto* optional : {&layer.q_norm, &layer.k_norm, &layer.router, &layer.shared_gate}) {
      if (*optional) add(**optional, ModuleCut::kWhole, index);
    }
    layout::LayerShape shape;
    shape.qkv_w4 = layer.q.quantised() || layer.k.quantised() || layer.v.quantised();
    shape.o = k_format(layer.o);
    if (!layer.experts.empty()) {
      add_mlps(layer.experts[0], static_cast<int64_t>(layer.experts.size()), index, &LayerShard::experts);
      shape.experts_down = k_format(layer.experts[0].down);
    }
    if (layer.shared) {
      add_mlps(*layer.shared, 1, index, &LayerShard::shared);
      shape.shared_down = k_format(layer.shared->down);
    }
    if (layer.dense) {
      add_mlps(*layer.dense, 1, index, &LayerShard::dense);
      shape.dense_down = k_format(layer.dense->down);
    }
    return shape;
  }

 private:
  std::vector<PlannedModule>& modules_;
};

}  // namespace

PlannedModel planned_model(const ModelSources& sources, const ModelConfig& config) {
  PlannedModel model;
  model.shape.vocabulary = config.vocab_size;
  model.shape.num_heads = config.num_heads;
  model.shape.num_kv_heads = config.num_kv_heads;
  model.shape.head_dim = config.head_dim;
  model.norm_spans_heads = config.qk_norm == QkNorm::kWholeProjection;
  Planner planner(&model.modules);
  // A tied embedding is kept once, as the head.
  planner.add(sources.embedding, ModuleCut::kVocabulary).row_major = sources.lm_head.has_value();
  for (size_t l = 0; l < sources.layers.size(); ++l) {
    model.shape.layers.push_back(planner.add_layer(sources.layers[l], static_cast<int64_t>(l)));
  }
  planner.add(sources.final_norm, ModuleCut::kWhole);
  if (sources.lm_head) planner.add(*sources.lm_head, ModuleCut::kVocabulary);
  return model;
}

}  // namespace quadrille::model
