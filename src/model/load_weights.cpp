// SPDX-License-Identifier: Apache-2.0
// The order of loading: embedding, layers with their experts spread over the pool, last norm, lm_head.
#include "model/load_weights.h"

#include "model/weight_reader.h"
#include "parallel/communicator.h"

namespace quadrille::model {
namespace {

class Loader {
 public:
  Loader(const Inventory& inventory, const ModelConfig& config, const LoadOptions& options,
         const layout::ModelShard* shard, const moe::Placement* placement)
      : inventory_(inventory),
        config_(config),
        options_(options),
        shard_(shard),
        placement_(placement),
        expert_rank_(placement == nullptr ? 0 : options.expert_ranks->rank()),
        reader_(options.numerics, options.round_scales,
                options.split_scale == moe::SplitScale::kAgreed ? prepare::ChannelScale::kWholeRow
                                                                : prepare::ChannelScale::kOwnGroups) {
    for (const ModuleSource* source : inventory.modules()) {
      ++progress_.modules_total;
      progress_.bytes_total += source->disk_bytes();
    }
    for (const LayerSources& layer : inventory.layers) leave_out_experts(layer);
  }

  Result<LoadedWeights> load(const WeightsRead& on_read) {
    LoadedWeights result;
    QD_TRY_STATUS(read_ends(&result.weights));
    if (on_read) QD_TRY_STATUS(on_read(&result.weights, -1));
    result.weights.layers.resize(config_.num_layers);
    for (int64_t l = 0; l < config_.num_layers; ++l) {
      QD_TRY_STATUS(read_layer(inventory_.layers[l], l, &result.weights.layers[l]));
      if (on_read) QD_TRY_STATUS(on_read(&result.weights, l));
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

  // What is read of the experts of a layer: one a slot.
  std::vector<const MlpSources*> held_experts(const LayerSources& layer) const {
    std::vector<const MlpSources*> held;
    if (placement_ == nullptr) {
      for (const MlpSources& expert : layer.experts) held.push_back(&expert);
    } else {
      for (const int32_t expert : placement_->slots(expert_rank_)) held.push_back(&layer.experts[expert]);
    }
    return held;
  }

  void leave_out_experts(const LayerSources& layer) {
    for (size_t e = 0; e < layer.experts.size(); ++e) {
      if (placement_ == nullptr || placement_->holds(expert_rank_, static_cast<int64_t>(e))) continue;
      for (const ModuleSource* source : {&layer.experts[e].gate, &layer.experts[e].up, &layer.experts[e].down}) {
        --progress_.modules_total;
        progress_.bytes_total -= source->disk_bytes();
      }
    }
  }

  void done(const ModuleSource& source) {
    ++progress_.modules_done;
    progress_.bytes_done += source.disk_bytes();
    progress_.module = source.path;
    if (options_.progress) options_.progress(progress_);
  }

  Status read_vector(const ModuleSource& source, std::vector<uint16_t>* values,
                     std::optional<layout::Range> rows = {}) {
    QD_TRY_STATUS(check_cancel());
    QD_TRY(*values, reader_.read_bf16(source, rows));
    done(source);
    return {};
  }

  Status read_matrix(const ModuleSource& source, const MatrixCut& cut, LinearStore* store) {
    QD_TRY_STATUS(check_cancel());
    const ModuleSource* parts[] = {&source};
    shape_store({parts, 1}, cut, 1, store);
    QD_TRY_STATUS(reader_.read_linear(parts, cut, 0, options_.pool, store));
    done(source);
    return {};
  }

  static void shape_store(std::span<const ModuleSource* const> parts, const MatrixCut& cut, int64_t num_experts,
                          LinearStore* store) {
    store->n = 0;
    for (const ModuleSource* part : parts) store->n += cut.rows ? cut.rows->size() : part->n();
    store->k = cut.columns ? cut.columns->k() : parts[0]->k();
    store->group_size = parts[0]->decision.group_size;
    store->reserve(num_experts, parts[0]->quantised());
  }

  // The cuts of this rank; one rank takes everything.
  static MatrixCut rows_cut(std::optional<layout::Range> rows) { return {rows, {}, true}; }
  MatrixCut columns_cut(const layout::KShard& columns) const { return {{}, columns, shard_->adds_row_parallel_bias()}; }
  MatrixCut vocabulary_cut() const { return shard_ == nullptr ? MatrixCut{} : rows_cut(shard_->vocabulary); }
  struct MlpCuts {
    MatrixCut gate_up, down;
  };
  MlpCuts mlp_cuts(int64_t layer, layout::MlpShard layout::LayerShard::*mlp) const {
    if (shard_ == nullptr) return {};
    const layout::MlpShard& held = shard_->layers[layer].*mlp;
    return {rows_cut(held.columns), columns_cut(held.down)};
  }

  // Gate and up stacked, and down, of one expert.
  Status read_expert(const MlpSources& source, const MlpCuts& cuts, int64_t expert, ThreadPool* pool, MlpStore* store) {
    QD_TRY_STATUS(check_cancel());
    const ModuleSource* gate_up[] = {&source.gate, &source.up};
    const ModuleSource* down[] = {&source.down};
    QD_TRY_STATUS(reader_.read_linear(gate_up, cuts.gate_up, expert, pool, &store->gate_up));
    return reader_.read_linear(down, cuts.down, expert, pool, &store->down);
  }

  // `any`: a feed-forward of the kind that all `sources` are, of which there may be none.
  Status read_mlps(const MlpSources& any, std::span<const MlpSources* const> sources, const MlpCuts& cuts,
                   MlpStore* store) {
    const ModuleSource* gate_up[] = {&any.gate, &any.up};
    const ModuleSource* down[] = {&any.down};
    const auto count = static_cast<int64_t>(sources.size());
    shape_store(gate_up, cuts.gate_up, count, &store->gate_up);
    shape_store(down, cuts.down, count, &store->down);
    store->width = cuts.down.columns ? cuts.down.columns->held() : any.down.k();
    store->down_offset = cuts.down.columns ? cuts.down.columns->k_offset() : 0;
    if (count == 1) {
      QD_TRY_STATUS(read_expert(*sources[0], cuts, 0, options_.pool, store));
    } else {
      // One expert a thread at a time; of several errors the lowest expert's is told.
      std::vector<Status> status(count);
      options_.pool->run(count, [&](int64_t e) { status[e] = read_expert(*sources[e], cuts, e, nullptr, store); });
      for (const Status& one : status) QD_TRY_STATUS(one);
    }
    for (const MlpSources* source : sources) {
      for (const ModuleSource* module : {&source->gate, &source->up, &source->down}) done(*module);
    }
    return {};
  }
  Status read_mlp(const MlpSources& source, const MlpCuts& cuts, MlpStore* store) {
    const MlpSources* one[] = {&source};
    return read_mlps(source, one, cuts, store);
  }

  Status read_experts(const LayerSources& source, int64_t index, LayerStore* layer) {
    if (placement_ != nullptr) layer->placement = *placement_;
    layer->expert_rank = expert_rank_;
    return read_mlps(source.experts[0], held_experts(source), mlp_cuts(index, &layout::LayerShard::experts),
                     &layer->experts);
  }

  Status read_attention(const LayerSources& source, int64_t index, LayerStore* layer) {
    MatrixCut q, kv, o;
    if (shard_ != nullptr) {
      const layout::AttentionShard& held = shard_->layers[index].attention;
      q = rows_cut(held.q_rows);
      kv = rows_cut(held.kv_rows);
      o = columns_cut(held.o);
    }
    QD_TRY_STATUS(read_matrix(source.q, q, &layer->q));
    QD_TRY_STATUS(read_matrix(source.k, kv, &layer->k));
    QD_TRY_STATUS(read_matrix(source.v, kv, &layer->v));
    return read_matrix(source.o, o, &layer->o);
  }

  Status read_layer(const LayerSources& source, int64_t index, LayerStore* layer) {
    using layout::LayerShard;
    QD_TRY_STATUS(read_vector(source.input_norm, &layer->input_norm));
    QD_TRY_STATUS(read_vector(source.post_attention_norm, &layer->post_attention_norm));
    if (source.q_norm) QD_TRY_STATUS(read_vector(*source.q_norm, &layer->q_norm));
    if (source.k_norm) QD_TRY_STATUS(read_vector(*source.k_norm, &layer->k_norm));
    QD_TRY_STATUS(read_attention(source, index, layer));
    if (source.router) QD_TRY_STATUS(read_vector(*source.router, &layer->router));
    if (source.shared_gate) QD_TRY_STATUS(read_vector(*source.shared_gate, &layer->shared_gate));
    if (!source.experts.empty()) QD_TRY_STATUS(read_experts(source, index, layer));
    if (source.shared) {
      QD_TRY_STATUS(read_mlp(*source.shared, mlp_cuts(index, &LayerShard::shared), &layer->shared));
    }
    if (source.dense) {
      QD_TRY_STATUS(read_mlp(*source.dense, mlp_cuts(index, &LayerShard::dense), &layer->dense));
    }
    return {};
  }

  // Embedding, last norm and lm_head. A tied lm_head is the embedding in the kernels' layout.
  Status read_ends(ModelWeights* weights) {
    QD_TRY_STATUS(read_vector(inventory_.final_norm, &weights->final_norm));
    if (!inventory_.lm_head) return read_matrix(inventory_.embedding, vocabulary_cut(), &weights->lm_head);
    QD_TRY_STATUS(read_vector(inventory_.embedding, &weights->embedding, vocabulary_cut().rows));
    return read_matrix(*inventory_.lm_head, vocabulary_cut(), &weights->lm_head);
  }

  const Inventory& inventory_;
  const ModelConfig& config_;
  const LoadOptions& options_;
  const layout::ModelShard* shard_;
  const moe::Placement* placement_;
  int expert_rank_;
  WeightReader reader_;
  LoadProgress progress_;
};

}  // namespace

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

Result<LoadedWeights> load_weights(const Inventory& inventory, const ModelConfig& config, const LoadOptions& options,
                                   const layout::ModelShard* shard, const moe::Placement* placement,
                                   const WeightsRead& on_read) {
  QD_TRY_STATUS(check_weight_only(inventory, options));
  return Loader(inventory, config, options, shard, placement).load(on_read);
}

}  // namespace quadrille::model
