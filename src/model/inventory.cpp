// SPDX-License-Identifier: Apache-2.0
// The walk over the model's modules and the checks of each tensor.
#include "model/inventory.h"

#include <set>

#include "kernels/api/table.h"

namespace quadrille::model {
namespace {

using formats::DType;
using formats::TensorView;
using formats::WeightFormat;

Error wrong_tensor(const TensorView& tensor, const std::string& expected) {
  return make_error(ErrorCode::kInvalidData, "{}: expected {}, found {} {}", tensor.where(), expected,
                    formats::dtype_name(tensor.dtype), formats::shape_text(tensor.shape));
}

bool is_float(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 || dtype == DType::kF32;
}

Status check_float(const TensorView& tensor, const std::vector<int64_t>& shape) {
  if (is_float(tensor.dtype) && tensor.shape == shape) return {};
  return wrong_tensor(tensor, fmt::format("BF16, F16 or F32 {}", formats::shape_text(shape)));
}

// Finds and checks modules; remembers which tensors were used.
class Finder {
 public:
  explicit Finder(const Inventory& inventory)
      : checkpoint_(inventory.checkpoint), quantization_(inventory.quantization) {}

  Result<ModuleSource> vector(const std::string& path, int64_t width) {
    ModuleSource source;
    source.path = path;
    source.kind = ModuleKind::kNorm;
    source.shape = {width};
    source.decision.rule = "not a linear layer";
    QD_TRY(source.weight, require(path + ".weight"));
    QD_TRY_STATUS(check_float(*source.weight, source.shape));
    return source;
  }

  // A matrix that the quantisation config may quantise.
  Result<ModuleSource> linear(const std::string& path, ModuleKind kind, int64_t n, int64_t k, bool has_bias = false) {
    ModuleSource source;
    source.path = path;
    source.kind = kind;
    source.shape = {n, k};
    QD_TRY_STATUS(decide(kind == ModuleKind::kEmbedding ? "Embedding" : "Linear", &source));
    if (has_bias) {
      QD_TRY(source.bias, require(path + ".bias"));
      QD_TRY_STATUS(check_float(*source.bias, {n}));
    }
    QD_TRY_STATUS(source.quantised() ? find_codes(&source) : find_plain(&source));
    return source;
  }

  // A matrix that runs in bf16 alone.
  Result<ModuleSource> plain(const std::string& path, ModuleKind kind, int64_t n, int64_t k) {
    QD_TRY(ModuleSource source, linear(path, kind, n, k));
    if (source.quantised()) {
      return make_error(
          ErrorCode::kUnsupported,
          "{}: '{}' would be quantised ({}); routers, shared-expert gates and embeddings run unquantised: "
          "add it to 'ignore' and quantise again",
          checkpoint_.folder(), path, source.decision.rule);
    }
    return source;
  }

  std::vector<std::string> unused() const {
    std::vector<std::string> names;
    for (const auto& [name, view] : checkpoint_.tensors()) {
      if (!used_.contains(name)) names.push_back(name);
    }
    return names;
  }

 private:
  Result<const TensorView*> require(const std::string& name) {
    used_.insert(name);
    return checkpoint_.require(name);
  }

  const TensorView* find(const std::string& name) {
    const TensorView* tensor = checkpoint_.find(name);
    if (tensor != nullptr) used_.insert(name);
    return tensor;
  }

  Status decide(const char* module_class, ModuleSource* source) {
    if (!quantization_) {
      source->decision.rule = "no quantization_config";
      return {};
    }
    QD_TRY(source->decision, quantization_->decide(source->path, module_class));
    return {};
  }

  Status find_plain(ModuleSource* source) {
    const std::string name = source->path + ".weight";
    if (checkpoint_.find(name) == nullptr && checkpoint_.find(source->path + ".weight_packed") != nullptr) {
      return make_error(ErrorCode::kInvalidData,
                        "{}: tensor '{}' is missing, but '{}.weight_packed' is there: the weights are quantised and "
                        "config.json says otherwise ({})",
                        checkpoint_.folder(), name, source->path, source->decision.rule);
    }
    QD_TRY(source->weight, require(name));
    return check_float(*source->weight, source->shape);
  }

  Status find_codes(ModuleSource* source) {
    const std::string& path = source->path;
    const int64_t n = source->n(), k = source->k();
    if (auto legal = kernels::check_w4a8_shape(n, k, source->decision.group_size); !legal) {
      return legal.error().in(fmt::format("{}: '{}'", checkpoint_.folder(), path));
    }
    for (const char* suffix : {".weight_zero_point", ".weight_g_idx"}) {
      if (checkpoint_.find(path + suffix) == nullptr) continue;
      return make_error(
          ErrorCode::kUnsupported,
          "{}: tensor '{}{}': asymmetric weights and activation order do not run; symmetric groups in the "
          "order of k do",
          checkpoint_.folder(), path, suffix);
    }
    QD_TRY_STATUS(source->decision.format == WeightFormat::kPackQuantized ? find_packed(source) : find_bytes(source));
    QD_TRY(source->scale, require(path + ".weight_scale"));
    const int64_t groups = source->decision.group_size == 0 ? 1 : k / source->decision.group_size;
    return check_float(*source->scale, {n, groups});
  }

  Status find_packed(ModuleSource* source) {
    QD_TRY(source->weight, require(source->path + ".weight_packed"));
    const std::vector<int64_t> words = {source->n(), (source->k() + 7) / 8};
    if (source->weight->dtype != DType::kI32 || source->weight->shape != words) {
      return wrong_tensor(*source->weight, fmt::format("I32 {}", formats::shape_text(words)));
    }
    const TensorView* shape = find(source->path + ".weight_shape");
    if (shape == nullptr) return {};
    if (shape->dtype != DType::kI64 || shape->shape != std::vector<int64_t>{2}) return wrong_tensor(*shape, "I64 [2]");
    int64_t found[2];
    QD_TRY_STATUS(shape->copy_to(std::as_writable_bytes(std::span(found))));
    if (found[0] == source->n() && found[1] == source->k()) return {};
    return make_error(ErrorCode::kInvalidData, "{}: expected the values {}, found [{}, {}]", shape->where(),
                      formats::shape_text(source->shape), found[0], found[1]);
  }

  Status find_bytes(ModuleSource* source) {
    QD_TRY(source->weight, require(source->path + ".weight"));
    if (source->weight->dtype == DType::kI8 && source->weight->shape == source->shape) return {};
    return wrong_tensor(*source->weight, fmt::format("I8 {}", formats::shape_text(source->shape)));
  }

  const formats::Checkpoint& checkpoint_;
  const std::optional<formats::QuantizationConfig>& quantization_;
  std::set<std::string> used_;
};

bool same_decision(const ModuleSource& a, const ModuleSource& b) {
  return a.decision.kind == b.decision.kind && (!a.quantised() || a.decision.group_size == b.decision.group_size);
}

std::string decision_text(const ModuleSource& source) {
  const char* kind = formats::quantization_kind_name(source.decision.kind);
  if (!source.quantised()) return fmt::format("'{}' {} ({})", source.path, kind, source.decision.rule);
  return fmt::format("'{}' {} group size {} ({})", source.path, kind, source.decision.group_size, source.decision.rule);
}

Status require_same(const ModuleSource& a, const ModuleSource& b, const char* why) {
  if (same_decision(a, b)) return {};
  return make_error(ErrorCode::kUnsupported, "{} must be quantised alike; found {} and {}", why, decision_text(a),
                    decision_text(b));
}

struct MlpNames {
  std::string gate, up, down;
};

Result<MlpSources> find_mlp(Finder* finder, const MlpNames& names, ModuleKind kind, int64_t hidden, int64_t width) {
  MlpSources mlp;
  QD_TRY(mlp.gate, finder->linear(names.gate, kind, width, hidden));
  QD_TRY(mlp.up, finder->linear(names.up, kind, width, hidden));
  QD_TRY(mlp.down, finder->linear(names.down, kind, hidden, width));
  QD_TRY_STATUS(require_same(mlp.gate, mlp.up, "gate and up of a feed-forward"));
  return mlp;
}

Status find_experts(Finder* finder, const ModelConfig& config, int64_t l, const formats::Checkpoint& checkpoint,
                    LayerSources* layer) {
  const TensorNames& names = config.names;
  QD_TRY(layer->router, finder->plain(names.layer_path(l, names.router), ModuleKind::kRouter, config.router.num_experts,
                                      config.hidden_size));
  const std::string fused = names.layer_path(l, "mlp.experts.gate_up_proj");
  if (checkpoint.find(fused) != nullptr) {
    return make_error(ErrorCode::kUnsupported,
                      "{}: tensor '{}': experts fused into one tensor do not run; save the model with one tensor an "
                      "expert",
                      checkpoint.folder(), fused);
  }
  for (int64_t e = 0; e < config.router.num_experts; ++e) {
    const MlpNames paths = {names.layer_path(l, names.expert_gate, e), names.layer_path(l, names.expert_up, e),
                            names.layer_path(l, names.expert_down, e)};
    QD_TRY(MlpSources expert, find_mlp(finder, paths, ModuleKind::kExpert, config.hidden_size, config.expert_width));
    layer->experts.push_back(std::move(expert));
    QD_TRY_STATUS(require_same(layer->experts[0].gate, layer->experts[e].gate, "the experts of a layer"));
    QD_TRY_STATUS(require_same(layer->experts[0].down, layer->experts[e].down, "the experts of a layer"));
  }
  return {};
}

Status find_shared(Finder* finder, const ModelConfig& config, int64_t l, LayerSources* layer) {
  if (config.shared_width == 0) return {};
  const TensorNames& names = config.names;
  const MlpNames paths = {names.layer_path(l, names.shared_gate_proj), names.layer_path(l, names.shared_up),
                          names.layer_path(l, names.shared_down)};
  QD_TRY(layer->shared, find_mlp(finder, paths, ModuleKind::kSharedExpert, config.hidden_size, config.shared_width));
  if (!config.shared_has_gate) return {};
  QD_TRY(layer->shared_gate,
         finder->plain(names.layer_path(l, names.shared_gate), ModuleKind::kRouter, 1, config.hidden_size));
  return {};
}

Status find_attention(Finder* finder, const ModelConfig& config, int64_t l, LayerSources* layer) {
  const TensorNames& names = config.names;
  const auto path = [&](const std::string& name) { return names.layer_path(l, name); };
  const int64_t hidden = config.hidden_size, q = config.q_width(), kv = config.kv_width();
  QD_TRY(layer->input_norm, finder->vector(path(names.input_norm), hidden));
  QD_TRY(layer->q, finder->linear(path(names.q), ModuleKind::kAttention, q, hidden, config.qkv_bias));
  QD_TRY(layer->k, finder->linear(path(names.k), ModuleKind::kAttention, kv, hidden, config.qkv_bias));
  QD_TRY(layer->v, finder->linear(path(names.v), ModuleKind::kAttention, kv, hidden, config.qkv_bias));
  QD_TRY(layer->o, finder->linear(path(names.o), ModuleKind::kAttention, hidden, q, config.o_bias));
  QD_TRY(layer->post_attention_norm, finder->vector(path(names.post_attention_norm), hidden));
  if (config.qk_norm == QkNorm::kNone) return {};
  const bool per_head = config.qk_norm == QkNorm::kPerHead;
  QD_TRY(layer->q_norm, finder->vector(path(names.q_norm), per_head ? config.head_dim : q));
  QD_TRY(layer->k_norm, finder->vector(path(names.k_norm), per_head ? config.head_dim : kv));
  return {};
}

Status find_layer(Finder* finder, const ModelConfig& config, int64_t l, const formats::Checkpoint& checkpoint,
                  LayerSources* layer) {
  QD_TRY_STATUS(find_attention(finder, config, l, layer));
  if (config.layers[l].is_moe) {
    QD_TRY_STATUS(find_experts(finder, config, l, checkpoint, layer));
    return find_shared(finder, config, l, layer);
  }
  const TensorNames& names = config.names;
  const MlpNames paths = {names.layer_path(l, names.dense_gate), names.layer_path(l, names.dense_up),
                          names.layer_path(l, names.dense_down)};
  QD_TRY(layer->dense, find_mlp(finder, paths, ModuleKind::kDense, config.hidden_size, config.dense_width));
  return {};
}

Status find_all(Finder* finder, const ModelConfig& config, Inventory* inventory) {
  const TensorNames& names = config.names;
  QD_TRY(inventory->embedding,
         finder->plain(names.embedding, ModuleKind::kEmbedding, config.vocab_size, config.hidden_size));
  inventory->layers.reserve(config.num_layers);
  for (int64_t l = 0; l < config.num_layers; ++l) {
    // Grows with what was found, so that a config that lies about its layers costs no memory.
    inventory->layers.emplace_back();
    QD_TRY_STATUS(find_layer(finder, config, l, inventory->checkpoint, &inventory->layers.back()));
  }
  QD_TRY(inventory->final_norm, finder->vector(names.final_norm, config.hidden_size));
  if (config.tie_word_embeddings) return {};
  QD_TRY(inventory->lm_head, finder->linear(names.lm_head, ModuleKind::kLmHead, config.vocab_size, config.hidden_size));
  return {};
}

void append_mlp(const MlpSources& mlp, std::vector<const ModuleSource*>* all) {
  all->insert(all->end(), {&mlp.gate, &mlp.up, &mlp.down});
}

void append_layer(const LayerSources& layer, std::vector<const ModuleSource*>* all) {
  all->insert(all->end(), {&layer.input_norm, &layer.q, &layer.k, &layer.v, &layer.o});
  for (const auto* optional : {&layer.q_norm, &layer.k_norm}) {
    if (*optional) all->push_back(&**optional);
  }
  all->push_back(&layer.post_attention_norm);
  if (layer.router) all->push_back(&*layer.router);
  for (const MlpSources& expert : layer.experts) append_mlp(expert, all);
  if (layer.shared) append_mlp(*layer.shared, all);
  if (layer.shared_gate) all->push_back(&*layer.shared_gate);
  if (layer.dense) append_mlp(*layer.dense, all);
}

}  // namespace

const char* module_kind_name(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kEmbedding:
      return "embedding";
    case ModuleKind::kNorm:
      return "norm";
    case ModuleKind::kAttention:
      return "attention";
    case ModuleKind::kRouter:
      return "router";
    case ModuleKind::kExpert:
      return "expert";
    case ModuleKind::kSharedExpert:
      return "shared_expert";
    case ModuleKind::kDense:
      return "dense";
    case ModuleKind::kLmHead:
      return "lm_head";
  }
  return "";
}

uint64_t ModuleSource::disk_bytes() const {
  uint64_t bytes = 0;
  for (const TensorView* tensor : {weight, scale, bias}) bytes += tensor != nullptr ? tensor->bytes.size() : 0;
  return bytes;
}

std::vector<const ModuleSource*> ModelSources::modules() const {
  std::vector<const ModuleSource*> all = {&embedding};
  for (const LayerSources& layer : layers) append_layer(layer, &all);
  all.push_back(&final_norm);
  if (lm_head) all.push_back(&*lm_head);
  return all;
}

Result<Inventory> take_inventory(const std::string& folder, const formats::HfConfig& raw, const ModelConfig& config,
                                 const LogSink& log) {
  std::optional<formats::QuantizationConfig> quantization;
  if (raw.quantization_config) {
    QD_TRY(quantization, formats::QuantizationConfig::parse(*raw.quantization_config, raw.file));
  }
  QD_TRY(formats::Checkpoint checkpoint, formats::Checkpoint::open(folder, log));
  Inventory inventory(std::move(checkpoint), std::move(quantization));
  Finder finder(inventory);
  QD_TRY_STATUS(find_all(&finder, config, &inventory));
  inventory.unused_tensors = finder.unused();
  return inventory;
}

}  // namespace quadrille::model
