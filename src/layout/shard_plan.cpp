// SPDX-License-Identifier: Apache-2.0
// The cuts. Nothing depends on a backend, because bits depend on where a sum is cut.
#include "layout/shard_plan.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"

namespace quadrille::layout {
namespace {

Status check_ranks(int ranks) {
  if (ranks >= 1 && ranks <= kMaxRanks) return {};
  return make_error(ErrorCode::kUnsupported, "{} tensor-parallel ranks: legal are 1..{}", ranks, kMaxRanks);
}

std::vector<Range> spread(int64_t size, int64_t unit, int ranks) {
  const int64_t units = ceil_div(size, unit);
  const auto first_unit = [&](int64_t rank) { return rank * (units / ranks) + std::min<int64_t>(rank, units % ranks); };
  std::vector<Range> cut;
  for (int rank = 0; rank < ranks; ++rank) {
    cut.push_back({std::min(size, first_unit(rank) * unit), std::min(size, first_unit(rank + 1) * unit)});
  }
  return cut;
}

Range rounded_out(Range held, int64_t align, int64_t k) {
  return {held.begin / align * align, std::min(k, ceil_div(held.end, align) * align)};
}

// Weights that the slowest rank reads for one of H.
int64_t slowest(const std::vector<Range>& cut, int64_t width, int64_t k_align) {
  int64_t most = 0;
  for (const Range& r : cut) {
    const int64_t records = ceil_div(rounded_out(r, k_align, width).size(), kPieceK);
    most = std::max(most, 2 * r.size() + records * kPieceK);
  }
  return most;
}

constexpr KFormat LayerShape::*kDownFormats[] = {&LayerShape::experts_down, &LayerShape::shared_down,
                                                 &LayerShape::dense_down};

// The cuts of widths: one for all layers of a width, whatever their groups.
class WidthCuts {
 public:
  WidthCuts(const ModelShape& shape, int ranks) : shape_(shape), ranks_(ranks) {}

  Result<Range> of(int64_t width, const char* what, int rank) {
    if (width == 0) return Range{};
    for (const auto& [known, cut] : cuts_) {
      if (known == width) return cut[static_cast<size_t>(rank)];
    }
    const int64_t unit = shape_.width_unit;
    QD_TRY(std::vector<Range> cut,
           unit == 0 ? cut_width(width, largest_align(width), ranks_, what) : cut_in_units(width, unit, ranks_, what));
    cuts_.emplace_back(width, std::move(cut));
    return cuts_.back().second[static_cast<size_t>(rank)];
  }

 private:
  int64_t largest_align(int64_t width) const {
    int64_t align = 1;
    for (const LayerShape& layer : shape_.layers) {
      for (const auto down : kDownFormats) {
        if ((layer.*down).k == width) align = std::max(align, (layer.*down).k_align());
      }
    }
    return align;
  }

  const ModelShape& shape_;
  int ranks_;
  std::vector<std::pair<int64_t, std::vector<Range>>> cuts_;
};

Result<MlpShard> mlp_shard(WidthCuts& cuts, const KFormat& down, const char* what, int rank) {
  MlpShard shard;
  QD_TRY(shard.columns, cuts.of(down.k, what, rank));
  if (!shard.empty()) shard.down = k_shard(down, shard.columns);
  return shard;
}

AttentionShard attention_shard(const ModelShape& shape, const LayerShape& layer, const HeadShard& heads) {
  const auto rows = [&](Range h) { return Range{h.begin * shape.head_dim, h.end * shape.head_dim}; };
  return {heads, rows(heads.heads), rows(heads.kv_heads), k_shard(layer.o, rows(heads.heads))};
}

Result<LayerShard> layer_shard(const ModelShape& shape, const LayerShape& layer, const HeadShard& heads,
                               WidthCuts& cuts, int rank) {
  LayerShard shard;
  shard.attention = attention_shard(shape, layer, heads);
  QD_TRY(shard.experts, mlp_shard(cuts, layer.experts_down, "the expert width", rank));
  QD_TRY(shard.shared, mlp_shard(cuts, layer.shared_down, "the shared-expert width", rank));
  QD_TRY(shard.dense, mlp_shard(cuts, layer.dense_down, "the dense width", rank));
  return shard;
}

// Rows of k and v of one head must fill words where they are W4A8: their cut has no other place.
Status check_head_rows(const ModelShape& shape, int ranks) {
  if (ranks == 1 || shape.head_dim % kColumnUnit == 0) return {};
  for (const LayerShape& layer : shape.layers) {
    if (!layer.qkv_w4) continue;
    return make_error(ErrorCode::kUnsupported,
                      "{} ranks: W4A8 projections have rows in multiples of {}, and KV heads of {} rows are not: legal "
                      "is 1 rank, or unquantised q_proj, k_proj and v_proj",
                      ranks, kColumnUnit, shape.head_dim);
  }
  return {};
}

}  // namespace

Result<std::vector<Range>> cut_in_units(int64_t size, int64_t unit, int ranks, const std::string& what) {
  QD_CHECK(size > 0 && unit > 0, "a dimension and its unit are positive");
  QD_TRY_STATUS(check_ranks(ranks));
  const int64_t units = ceil_div(size, unit);
  if (units < ranks) {
    return make_error(ErrorCode::kUnsupported,
                      "{} ranks: {} is {}, cut in units of {}, and each rank needs one: legal are 1..{} ranks", ranks,
                      what, size, unit, std::min<int64_t>(units, kMaxRanks));
  }
  return spread(size, unit, ranks);
}

Result<std::vector<Range>> cut_width(int64_t width, int64_t k_align, int ranks, const std::string& what) {
  QD_CHECK(k_align > 0, "matrices begin at multiples of something");
  QD_TRY(std::vector<Range> best, cut_in_units(width, kColumnUnit, ranks, what));
  for (const int64_t unit : {16, 32, 64, 128}) {
    if (ceil_div(width, unit) < ranks) break;
    std::vector<Range> cut = spread(width, unit, ranks);
    if (slowest(cut, width, k_align) <= slowest(best, width, k_align)) best = std::move(cut);
  }
  return best;
}

Result<std::vector<HeadShard>> cut_heads(int64_t num_heads, int64_t num_kv_heads, int ranks) {
  QD_CHECK(num_kv_heads > 0 && num_heads % num_kv_heads == 0, "query heads are a multiple of KV heads");
  QD_TRY(const std::vector<Range> cut, cut_in_units(num_heads, 1, ranks, "the number of query heads"));
  const int64_t per_kv = num_heads / num_kv_heads;
  std::vector<HeadShard> shards;
  for (const Range& heads : cut) {
    shards.push_back({heads, {heads.begin / per_kv, ceil_div(heads.end, per_kv)}, per_kv});
  }
  return shards;
}

KShard k_shard(const KFormat& format, Range held, bool block_scales) {
  QD_CHECK(held.begin >= 0 && held.begin < held.end && held.end <= format.k, "a shard holds columns of the matrix");
  const Range matrix = rounded_out(held, format.k_align(block_scales), format.k);
  return {format, held.begin, held.end, matrix.begin, matrix.end};
}

Result<std::vector<ModelShard>> plan_shards(const ModelShape& shape, int ranks) {
  QD_TRY_STATUS(check_ranks(ranks));
  if (shape.width_unit < 0 || shape.width_unit % kColumnUnit != 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      "widths cut at multiples of {}: legal are multiples of {}, or 0 for the plan's choice",
                      shape.width_unit, kColumnUnit);
  }
  QD_TRY_STATUS(check_head_rows(shape, ranks));
  QD_TRY(const std::vector<HeadShard> heads, cut_heads(shape.num_heads, shape.num_kv_heads, ranks));
  QD_TRY(const std::vector<Range> vocabulary, cut_in_units(shape.vocabulary, kColumnUnit, ranks, "the vocabulary"));
  WidthCuts cuts(shape, ranks);
  std::vector<ModelShard> shards;
  for (int rank = 0; rank < ranks; ++rank) {
    ModelShard shard{rank, ranks, vocabulary[static_cast<size_t>(rank)], {}};
    for (const LayerShape& layer : shape.layers) {
      QD_TRY(LayerShard one, layer_shard(shape, layer, heads[static_cast<size_t>(rank)], cuts, rank));
      shard.layers.push_back(one);
    }
    shards.push_back(std::move(shard));
  }
  return shards;
}

}  // namespace quadrille::layout
