// SPDX-License-Identifier: Apache-2.0
// What a rank takes of each module of a checkpoint for its GPU, and how many bytes that is in page-locked memory. Used
// by device_load.cpp.
#pragma once

#include <cstddef>
#include <vector>

#include "layout/w4_lanes16.h"
#include "model/inventory.h"
#include "model/model.h"
#include "model/weight_reader.h"
#include "prepare/device_prepare.h"

namespace quadrille::model {

// A module with the part of it that this rank holds. Of a row-parallel one every rank holds the bias: the layers add
// that of rank 0 alone.
struct CutModule {
  const ModuleSource* source = nullptr;
  MatrixCut cut;

  layout::Range rows() const { return cut.rows.value_or(layout::Range{0, source->n()}); }
  // Columns of the rank's matrix: padded to whole groups where it is 4-bit.
  int64_t k() const {
    if (!cut.columns) return source->k();
    return source->quantised() ? cut.columns->k() : cut.columns->held();
  }
  size_t code_bytes() const {
    const bool packed = source->decision.format == formats::WeightFormat::kPackQuantized;
    return static_cast<size_t>(packed ? rows().size() * k() / 2 : rows().size() * k());
  }
  size_t scale_count() const {
    return static_cast<size_t>(rows().size() * layout::num_groups(k(), source->decision.group_size));
  }
  size_t bias_count() const { return source->bias != nullptr ? static_cast<size_t>(rows().size()) : 0; }
};

// The cuts of a rank; with null every module is taken whole.
class RankCuts {
 public:
  using MlpOf = layout::MlpShard layout::LayerShard::*;
  explicit RankCuts(const layout::ModelShard* shard) : shard_(shard) {}

  CutModule whole(const ModuleSource& module) const { return {&module, {}}; }
  CutModule vocabulary(const ModuleSource& module) const {
    return shard_ == nullptr ? whole(module) : CutModule{&module, {shard_->vocabulary, {}, true}};
  }
  CutModule q(size_t layer, const ModuleSource& module) const {
    return shard_ == nullptr ? whole(module) : CutModule{&module, {attention(layer).q_rows, {}, true}};
  }
  CutModule kv(size_t layer, const ModuleSource& module) const {
    return shard_ == nullptr ? whole(module) : CutModule{&module, {attention(layer).kv_rows, {}, true}};
  }
  CutModule o(size_t layer, const ModuleSource& module) const {
    return shard_ == nullptr ? whole(module) : CutModule{&module, {{}, attention(layer).o, true}};
  }
  CutModule columns(size_t layer, MlpOf mlp, const ModuleSource& module) const {
    return shard_ == nullptr ? whole(module) : CutModule{&module, {held(layer, mlp).columns, {}, true}};
  }
  CutModule down(size_t layer, MlpOf mlp, const ModuleSource& module) const {
    return shard_ == nullptr ? whole(module) : CutModule{&module, {{}, held(layer, mlp).down, true}};
  }

 private:
  const layout::AttentionShard& attention(size_t layer) const { return shard_->layers[layer].attention; }
  const layout::MlpShard& held(size_t layer, MlpOf mlp) const { return shard_->layers[layer].*mlp; }

  const layout::ModelShard* shard_;
};

// The 4-bit matrix of an expert, gathered from its modules in the checkpoint's form, for prepare_on_device().
class W4Gatherer {
 public:
  // `reader` outlives the object.
  W4Gatherer(WeightReader* reader, const LoadOptions& options)
      : reader_(*reader),
        takes_absmax_(options.numerics == kernels::Numerics::kVllm && options.split_scale == moe::SplitScale::kAgreed) {
  }

  static constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }
  // Of one expert in memory that begins aligned. `num_parts` 2: gate and up, else the modules are stacked.
  size_t bytes(const std::vector<CutModule>& modules, int32_t num_parts) const;
  // Where its pieces lie in memory at `at`: as prepare_on_device() stages them, so that an expert is one copy.
  prepare::DeviceW4Expert places(const std::vector<CutModule>& modules, int32_t num_parts, std::byte* at) const;
  // Reads them. Several threads may read at once. Errors: those of WeightReader::read_canonical().
  Status read(const std::vector<CutModule>& modules, int32_t num_parts, std::byte* at) const;

 private:
  // The maxima of the whole rows of a row-parallel cut, where the preparation reads them.
  size_t absmax_count(const CutModule& module) const {
    return takes_absmax_ && module.cut.columns ? static_cast<size_t>(module.rows().size()) : 0;
  }
  prepare::W4PartLayout layout_of(std::span<const CutModule> part) const;

  WeightReader& reader_;
  bool takes_absmax_;
};

}  // namespace quadrille::model
