// SPDX-License-Identifier: Apache-2.0
// The order of loading: embedding, layers with their experts spread over the pool, last norm, lm_head.
#include "model/load_weights.h"

#include "model/weight_reader.h"

namespace quadrille::model {
namespace {

class Loader {
 public:
  Loader(const Inventory& inventory, const ModelConfig& config, const LoadOptions& options)
      : inventory_(inventory), config_(config), options_(options), reader_(options.numerics, options.round_scales) {
    for (const ModuleSource* source : inventory.modules()) {
      ++progress_.modules_total;
      progress_.bytes_total += source->disk_bytes();
    }
  }

  Result<LoadedWeights> load() {
    LoadedWeights result;
    QD_TRY_STATUS(read_ends(&result.weights));
    result.weights.layers.resize(config_.num_layers);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      QD_TRY_STATUS(read_layer(inventory_.layers[l], &result.weights.layers[l]));
    }
    result.notes = reader_.notes();
    return result;
  }

 private:
  Status check_cancel() const {
    if (options_.cancel == nullptr || !options_.cancel->load(std::memory_order_relaxed)) return {};
    return make_error(ErrorCode::kCancelled, "loading stopped after {} of {} modules", progress_.modules_done,
                      progress_.modules_total);
  }

  void done(const ModuleSource& source) {
    ++progress_.modules_done;
    progress_.bytes_done += source.disk_bytes();
    progress_.module = source.path;
    if (options_.progress) options_.progress(progress_);
  }

  Status read_vector(const ModuleSource& source, std::vector<uint16_t>* values) {
    QD_TRY_STATUS(check_cancel());
    QD_TRY(*values, reader_.read_bf16(source));
    done(source);
    return {};
  }

  Status read_matrix(const ModuleSource& source, LinearStore* store) {
    QD_TRY_STATUS(check_cancel());
    const ModuleSource* parts[] = {&source};
    shape_store({parts, 1}, 1, store);
    QD_TRY_STATUS(reader_.read_linear(parts, 0, options_.pool, store));
    done(source);
    return {};
  }

  static void shape_store(std::span<const ModuleSource* const> parts, int64_t num_experts, LinearStore* store) {
    store->n = 0;
    for (const ModuleSource* part : parts) store->n += part->n();
    store->k = parts[0]->k();
    store->group_size = parts[0]->decision.group_size;
    store->reserve(num_experts, parts[0]->quantised());
  }

  // Gate and up stacked, and down, of one expert.
  Status read_expert(const MlpSources& source, int64_t expert, ThreadPool* pool, MlpStore* store) {
    QD_TRY_STATUS(check_cancel());
    const ModuleSource* gate_up[] = {&source.gate, &source.up};
    const ModuleSource* down[] = {&source.down};
    QD_TRY_STATUS(reader_.read_linear(gate_up, expert, pool, &store->gate_up));
    return reader_.read_linear(down, expert, pool, &store->down);
  }

  Status read_mlps(std::span<const MlpSources> sources, MlpStore* store) {
    const ModuleSource* gate_up[] = {&sources[0].gate, &sources[0].up};
    const ModuleSource* down[] = {&sources[0].down};
    const auto count = static_cast<int64_t>(sources.size());
    shape_store(gate_up, count, &store->gate_up);
    shape_store(down, count, &store->down);
    if (count == 1) {
      QD_TRY_STATUS(read_expert(sources[0], 0, options_.pool, store));
    } else {
      // One expert a thread at a time; of several errors the lowest expert's is told.
      std::vector<Status> status(count);
      options_.pool->run(count, [&](int64_t e) { status[e] = read_expert(sources[e], e, nullptr, store); });
      for (const Status& one : status) QD_TRY_STATUS(one);
    }
    for (const MlpSources& source : sources) {
      for (const ModuleSource* module : {&source.gate, &source.up, &source.down}) done(*module);
    }
    return {};
  }

  Status read_layer(const LayerSources& source, LayerStore* layer) {
    QD_TRY_STATUS(read_vector(source.input_norm, &layer->input_norm));
    QD_TRY_STATUS(read_vector(source.post_attention_norm, &layer->post_attention_norm));
    if (source.q_norm) QD_TRY_STATUS(read_vector(*source.q_norm, &layer->q_norm));
    if (source.k_norm) QD_TRY_STATUS(read_vector(*source.k_norm, &layer->k_norm));
    QD_TRY_STATUS(read_matrix(source.q, &layer->q));
    QD_TRY_STATUS(read_matrix(source.k, &layer->k));
    QD_TRY_STATUS(read_matrix(source.v, &layer->v));
    QD_TRY_STATUS(read_matrix(source.o, &layer->o));
    if (source.router) QD_TRY_STATUS(read_vector(*source.router, &layer->router));
    if (source.shared_gate) QD_TRY_STATUS(read_vector(*source.shared_gate, &layer->shared_gate));
    if (!source.experts.empty()) QD_TRY_STATUS(read_mlps(source.experts, &layer->experts));
    if (source.shared) QD_TRY_STATUS(read_mlps({&*source.shared, 1}, &layer->shared));
    if (source.dense) QD_TRY_STATUS(read_mlps({&*source.dense, 1}, &layer->dense));
    return {};
  }

  // Embedding, last norm and lm_head. A tied lm_head is the embedding in the kernels' layout.
  Status read_ends(ModelWeights* weights) {
    QD_TRY_STATUS(read_vector(inventory_.final_norm, &weights->final_norm));
    if (!inventory_.lm_head) return read_matrix(inventory_.embedding, &weights->lm_head);
    QD_TRY_STATUS(read_vector(inventory_.embedding, &weights->embedding));
    return read_matrix(*inventory_.lm_head, &weights->lm_head);
  }

  const Inventory& inventory_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  WeightReader reader_;
  LoadProgress progress_;
};

Status check_weight_only(const Inventory& inventory, const LoadOptions& options) {
  if (options.run_weight_only_as_fp8) return {};
  for (const ModuleSource* source : inventory.modules()) {
    if (source->decision.kind != formats::QuantizationKind::kW4A16) continue;
    return make_error(
        ErrorCode::kUnsupported,
        "{}: '{}' is W4A16 ({}): 4-bit weights made for bf16 activations, which this program does not run; "
        "'--activations fp8' runs them as W4A8, with activations rounded to FP8",
        inventory.checkpoint.folder(), source->path, source->decision.rule);
  }
  return {};
}

}  // namespace

Result<LoadedWeights> load_weights(const Inventory& inventory, const ModelConfig& config, const LoadOptions& options) {
  QD_TRY_STATUS(check_weight_only(inventory, options));
  return Loader(inventory, config, options).load();
}

}  // namespace quadrille::model
