// SPDX-License-Identifier: Apache-2.0
// Puts a model together: options, weights, cache, position tables, decoder.
#include "model/model.h"

#include <algorithm>
#include <new>

#include "core/check.h"
#include "kernels/api/registry.h"
#include "model/expert_moves.h"
#include "model/first_use.h"
#include "model/load_weights.h"
#include "model/open_folder.h"
#include "model/prepared_weights.h"
#include "model/tp_legality.h"
#include "parallel/communicator.h"

namespace quadrille::model {
namespace {

Result<const kernels::KernelTable*> choose_table(const LoadOptions& options) {
  if (options.pool == nullptr) return make_error(ErrorCode::kInvalidArgument, "model: a thread pool is needed");
  const kernels::KernelTable* table = options.table;
  if (table == nullptr) {
    QD_TRY(table, kernels::select_table(""));
  }
  if (options.rounding == kernels::Rounding::kF32 && !table->supports_round_f32) {
    return make_error(ErrorCode::kUnsupported,
                      "kernels '{}' have no '--round f32': they compute what the hardware computes, in bf16; choose "
                      "'--round bf16' or another table",
                      table->name);
  }
  return table;
}

// `num_kv_heads`: the most of any rank, so that all ranks have as many pages.
Result<int64_t> choose_pages(const ModelConfig& config, const LoadOptions& options, int64_t num_kv_heads,
                             int64_t max_positions, kernels::KvType type) {
  if (options.cache_pages < 0 || options.default_positions < 1 || options.max_positions < 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "cache: {} pages, {} default positions, at most {} positions: expected no negative number",
                      options.cache_pages, options.default_positions, options.max_positions);
  }
  if (options.cache_pages > 0) return options.cache_pages;
  const uint64_t page = KvCache::bytes_per_page(config.num_layers, num_kv_heads, config.head_dim, type);
  if (options.cache_bytes > 0) {
    if (options.cache_bytes >= page) return static_cast<int64_t>(options.cache_bytes / page);
    return make_error(ErrorCode::kCapacity, "cache: {} bytes hold no page; a page of {} positions takes {}",
                      options.cache_bytes, kPagePositions, page);
  }
  const int64_t positions = std::min(options.default_positions, max_positions);
  return (positions + kPagePositions - 1) / kPagePositions;
}

bool has_ranks(const LoadOptions& options) {
  return options.ranks != nullptr && options.ranks->size() > 1;
}

bool has_expert_ranks(const LoadOptions& options) {
  return options.expert_ranks != nullptr && options.expert_ranks->size() > 1;
}

// Where the experts of every layer are; nothing: all here.
Result<std::optional<moe::Placement>> choose_placement(const ModelConfig& config, const LoadOptions& options) {
  if (!has_expert_ranks(options) || config.num_moe_layers() == 0) return std::optional<moe::Placement>();
  const int ranks = options.expert_ranks->size();
  if (!options.placement) {
    QD_TRY(moe::Placement even, moe::Placement::even(config.router.num_experts, ranks));
    return std::optional(std::move(even));
  }
  if (options.placement->num_ranks() == ranks && options.placement->num_experts() == config.router.num_experts) {
    return options.placement;
  }
  return make_error(ErrorCode::kInvalidArgument,
                    "placement of {} experts over {} ranks; the model has {} experts and {} expert-parallel ranks",
                    options.placement->num_experts(), options.placement->num_ranks(), config.router.num_experts, ranks);
}

// What this rank has of the model. `shards`: of all ranks; empty: one rank.
RankPart rank_part(const ModelConfig& config, std::vector<layout::ModelShard> shards, int rank) {
  RankPart part;
  part.heads = {{0, config.num_heads}, {0, config.num_kv_heads}, config.num_heads / config.num_kv_heads};
  part.vocabulary = {0, config.vocab_size};
  part.most_kv_heads = config.num_kv_heads;
  if (shards.empty()) return part;
  const layout::ModelShard& own = shards[static_cast<size_t>(rank)];
  part.heads = own.layers[0].attention.heads;
  part.vocabulary = own.vocabulary;
  part.most_kv_heads = 0;
  for (const layout::ModelShard& shard : shards) {
    part.most_kv_heads = std::max(part.most_kv_heads, shard.layers[0].attention.heads.kv_heads.size());
  }
  part.all = std::move(shards);
  return part;
}

Result<std::vector<layout::ModelShard>> all_shards(const Inventory& inventory, const ModelConfig& config,
                                                   const LoadOptions& options) {
  std::vector<layout::ModelShard> shards;
  if (!has_ranks(options)) return shards;
  QD_TRY(std::vector<RankShare> shares, rank_shares(planned_model(inventory, config), options.ranks->size()));
  for (RankShare& share : shares) shards.push_back(std::move(share.shard));
  return shards;
}

}  // namespace

struct Model::Impl {
  ModelConfig config;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::Rounding rounding = kernels::Rounding::kBf16;
  const kernels::KernelTable* table = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  int64_t max_positions = 0;
  std::vector<std::string> notes;
  ModelWeights weights;
  DecoderView view;
  std::optional<KvCache> cache;
  RopeTables rope;
  moe::Execution execution;
  std::optional<Decoder> decoder;

  static Result<std::unique_ptr<Impl>> create(const ModelConfig& config, const LoadOptions& options) {
    auto impl = std::make_unique<Impl>();
    QD_TRY(impl->table, choose_table(options));
    impl->config = config;
    impl->numerics = options.numerics;
    impl->rounding = options.rounding;
    impl->cancel = options.cancel;
    return impl;
  }

  // After the weights: cache, tables, decoder. The cache holds bf16 in round bf16, where that loses nothing.
  Status finish(const LoadOptions& options, RankPart part) {
    view = weights.seal(config);
    const auto type = rounding == kernels::Rounding::kBf16 ? kernels::KvType::kBf16 : kernels::KvType::kF32;
    max_positions = config.max_positions;
    if (options.max_positions > 0) max_positions = std::min(max_positions, options.max_positions);
    QD_TRY(const int64_t num_pages, choose_pages(config, options, part.most_kv_heads, max_positions, type));
    QD_TRY(cache, KvCache::create(config.num_layers, part.heads.kv_heads.size(), config.head_dim, num_pages, type));
    // No sequence gets longer than the whole cache.
    const int64_t reachable = std::min(max_positions, num_pages * kPagePositions);
    rope = make_rope_tables(config.rope, config.head_dim, reachable, options.pool);
    execution.table = table;
    execution.kernels.pool = options.pool;
    execution.numerics = numerics;
    execution.rounding = rounding;
    execution.ranks = options.ranks;
    execution.expert_ranks = options.expert_ranks;
    execution.split_scale = options.split_scale;
    decoder.emplace(config, view, rope, &*cache, execution, std::move(part));
    return {};
  }
};

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::~Model() = default;

namespace {

// What load() puts into a model: weights, and which part of the whole they are.
struct RankWeights {
  ModelWeights weights;
  std::vector<std::string> notes;
  RankPart part;
};

Result<RankWeights> load_checkpoint(const std::string& folder, const ModelConfig& config, const LoadOptions& options) {
  QD_TRY(const Inventory inventory, open_inventory(folder, config, options));
  QD_TRY(std::vector<layout::ModelShard> shards, all_shards(inventory, config, options));
  QD_TRY(const std::optional<moe::Placement> placement, choose_placement(config, options));
  const int rank = shards.empty() ? 0 : options.ranks->rank();
  QD_TRY(LoadedWeights loaded, load_weights(inventory, config, options, shards.empty() ? nullptr : &shards[rank],
                                            placement ? &*placement : nullptr));
  return RankWeights{std::move(loaded.weights), std::move(loaded.notes), rank_part(config, std::move(shards), rank)};
}

// Ranks check all that they hold before the first step: a step that ends on one of them would leave the others waiting.
Result<RankWeights> map_prepared(const std::string& folder, const ModelConfig& config, const LoadOptions& options) {
  if (has_ranks(options)) return formats::prepared_instead_of_checkpoint(folder);
  QD_TRY(const std::optional<moe::Placement> placement, choose_placement(config, options));
  PreparedOptions prepared;
  prepared.numerics = options.numerics;
  prepared.pool = options.pool;
  if (placement) {
    prepared.placement = &*placement;
    prepared.expert_rank = options.expert_ranks->rank();
  }
  QD_TRY(PreparedWeights mapped, load_prepared(folder, config, prepared));
  if (placement) QD_TRY_STATUS(mapped.weights.first_use->check_all());
  return RankWeights{std::move(mapped.weights), std::move(mapped.notes), rank_part(config, {}, 0)};
}

}  // namespace

Result<std::unique_ptr<Model>> Model::load(const std::string& folder, const LoadOptions& options) {
  try {
    if (has_ranks(options)) options.ranks->set_phase(parallel::Phase::kLoad);
    if (has_expert_ranks(options)) options.expert_ranks->set_phase(parallel::Phase::kLoad);
    QD_TRY(const ModelConfig config, read_model_config(folder));
    QD_TRY(std::unique_ptr<Impl> impl, Impl::create(config, options));
    QD_TRY(RankWeights loaded, formats::is_prepared_folder(folder) ? map_prepared(folder, config, options)
                                                                   : load_checkpoint(folder, config, options));
    impl->weights = std::move(loaded.weights);
    impl->notes = std::move(loaded.notes);
    for (const std::string& note : impl->notes) options.log(LogLevel::kWarning, fmt::format("{}: {}", folder, note));
    QD_TRY_STATUS(impl->finish(options, std::move(loaded.part)));
    return std::unique_ptr<Model>(new Model(std::move(impl)));
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "{}: the system has not enough memory for the weights and the cache",
                      folder);
  }
}

Result<std::unique_ptr<Model>> Model::random(const ModelConfig& config, const RandomModel& random,
                                             const LoadOptions& options) {
  try {
    QD_TRY_STATUS(check_model_config(config, "random model"));
    QD_TRY(std::unique_ptr<Impl> impl, Impl::create(config, options));
    std::vector<layout::ModelShard> shards;
    if (has_ranks(options)) {
      QD_TRY(shards, layout::plan_shards(random_shape(config, random), options.ranks->size()));
    }
    QD_TRY(const std::optional<moe::Placement> placement, choose_placement(config, options));
    const int rank = shards.empty() ? 0 : options.ranks->rank();
    QD_TRY(impl->weights, random_weights(config, random, options, shards.empty() ? nullptr : &shards[rank],
                                         placement ? &*placement : nullptr));
    QD_TRY_STATUS(impl->finish(options, rank_part(config, std::move(shards), rank)));
    return std::unique_ptr<Model>(new Model(std::move(impl)));
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "random model: the system has not enough memory for it");
  }
}

int64_t Model::vocab_size() const {
  return impl_->config.vocab_size;
}
int64_t Model::max_positions() const {
  return impl_->max_positions;
}
int64_t Model::num_pages() const {
  return impl_->cache->num_pages();
}
const ModelConfig& Model::config() const {
  return impl_->config;
}
const kernels::KernelTable& Model::table() const {
  return *impl_->table;
}
kernels::Numerics Model::numerics() const {
  return impl_->numerics;
}
kernels::Rounding Model::rounding() const {
  return impl_->rounding;
}
const std::vector<std::string>& Model::notes() const {
  return impl_->notes;
}
const std::vector<layout::ModelShard>& Model::shards() const {
  return impl_->decoder->shards();
}
void Model::set_observer(StepObserver* observer) {
  impl_->decoder->set_observer(observer);
}

Status Model::run(const Step& step, std::span<float> logits) {
  try {
    QD_TRY_STATUS(impl_->decoder->check_step(step, logits, impl_->rope.num_positions));
    if (impl_->weights.first_use) QD_TRY_STATUS(impl_->weights.first_use->before_step(step.ids));
    return impl_->decoder->run(step, logits, impl_->cancel);
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "step: the system has not enough memory for {} tokens", step.ids.size());
  }
}

Status Model::run_moe_block(int64_t layer, std::span<const float> x, int64_t num_tokens, std::span<float> out) {
  const ModelConfig& c = impl_->config;
  const auto count = static_cast<size_t>(std::max<int64_t>(num_tokens, 0) * c.hidden_size);
  if (layer < 0 || layer >= c.num_layers || num_tokens < 0 || x.size() < count || out.size() < count) {
    return make_error(ErrorCode::kInvalidArgument, "block {} of {}: {} tokens with {} values in, room for {} out",
                      layer, c.num_layers, num_tokens, x.size(), out.size());
  }
  if (impl_->weights.first_use) QD_TRY_STATUS(impl_->weights.first_use->before_step({}));
  impl_->decoder->scratch().reset();
  return impl_->decoder->run_feed_forward(layer, x.data(), num_tokens, out.data());
}

const moe::Placement* Model::placement(int64_t layer) const {
  if (layer < 0 || layer >= impl_->config.num_layers) return nullptr;
  const auto& placement = impl_->weights.layers[layer].placement;
  return placement ? &*placement : nullptr;
}

Status Model::move_expert(const ExpertMove& move) {
  if (placement(move.layer) == nullptr) {
    return make_error(ErrorCode::kInvalidArgument,
                      "layer {}: expert {} cannot change its rank: no layer {} has experts that are spread over ranks",
                      move.layer, move.expert, move.layer);
  }
  QD_TRY_STATUS(model::move_expert(move, impl_->execution, &impl_->weights.layers[move.layer]));
  impl_->weights.seal_experts(move.layer, impl_->config, &impl_->view);
  return {};
}

std::vector<std::span<const std::byte>> Model::expert_memory(int64_t layer, int64_t expert) const {
  const bool is_expert = layer >= 0 && layer < impl_->config.num_layers && impl_->config.layers[layer].is_moe &&
                         expert >= 0 && expert < impl_->config.router.num_experts;
  if (!is_expert) return {};
  return model::expert_memory(impl_->weights.layers[layer], expert);
}

MemoryUse Model::memory() const {
  MemoryUse use;
  use.weight_bytes = impl_->weights.bytes();
  use.expert_bytes = impl_->weights.expert_bytes();
  use.cache_bytes = impl_->cache->bytes();
  use.position_bytes = (impl_->rope.cos.size() + impl_->rope.sin.size()) * sizeof(float);
  use.scratch_bytes = impl_->decoder->scratch_bytes();
  use.bytes_read_per_token = impl_->weights.bytes_read_per_token(impl_->config);
  return use;
}

}  // namespace quadrille::model
