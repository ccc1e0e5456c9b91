// SPDX-License-Identifier: Apache-2.0
// Which rows, columns, heads and scale groups each tensor-parallel rank holds: integers only, the same on every rank
// and for every backend. src/prepare/shard.h applies it to weights, the layers above read their own shapes from it.
// docs/parallel.md tells the rules.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/hostdev.h"
#include "core/result.h"
#include "layout/tag.h"

namespace quadrille::layout {

inline constexpr int kMaxRanks = 64;
// W4A8 products have out features in multiples of 8; a packed word holds 8 codes.
inline constexpr int64_t kColumnUnit = 8;
// Pieces of a matrix with one scale a channel, 1 x 128 activation scales, and records of the device layout.
inline constexpr int64_t kPieceK = 128;
inline constexpr int64_t kStepK = 32;

// Whole numbers begin <= i < end, counted in the unsharded dimension.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  QD_HD constexpr int64_t size() const { return end - begin; }
  friend QD_HD constexpr bool operator==(const Range& a, const Range& b) {
    return a.begin == b.begin && a.end == b.end;
  }
};

// One range a rank, in rank order, without gaps: size / unit units (a shorter last one counts as one), the first ranks
// one unit more where they do not divide. Error kUnsupported where a rank would get none: `what` names the dimension
// ("expert width"), and rule, numbers and legal sizes follow.
Result<std::vector<Range>> cut_in_units(int64_t size, int64_t unit, int ranks, const std::string& what);

// The cut of a feed-forward's width: rows of gate and of up, and the K of down, whose matrices begin at multiples of
// `k_align` (KFormat below). Of the units 128, 64, 32, 16 and 8 that give every rank one, the one whose slowest rank
// reads fewest weights (its columns of gate and up, and down's in records of 128 k); the largest of equals. So cuts lie
// on group borders where that costs nothing, and go through a group where it is cheaper or the only way.
Result<std::vector<Range>> cut_width(int64_t width, int64_t k_align, int ranks, const std::string& what);

// Query heads of one rank and every KV head that they read. Neighbours may hold the same KV head.
struct HeadShard {
  Range heads;
  Range kv_heads;
  int64_t heads_per_kv = 1;  // of the whole model
  friend bool operator==(const HeadShard&, const HeadShard&) = default;

  // Query head i of the rank (counted from 0) reads this KV head of the rank.
  QD_HD constexpr int64_t local_kv_head(int64_t i) const { return (heads.begin + i) / heads_per_kv - kv_heads.begin; }
};

// Query heads as evenly as whole heads allow. num_heads is a multiple of num_kv_heads. Errors as cut_in_units.
Result<std::vector<HeadShard>> cut_heads(int64_t num_heads, int64_t num_kv_heads, int ranks);

// How a row-parallel matrix [n, K] stores its K.
struct KFormat {
  int64_t k = 0;           // of the unsharded matrix; 0: there is no such matrix
  bool is_w4 = false;      // else dense
  int64_t group_size = 0;  // of W4: 32, 64, 128, 0: one scale a channel
  friend bool operator==(const KFormat&, const KFormat&) = default;

  // Columns at whose absolute multiples a rank's matrix may begin: the group; 128 for one scale a channel (computed in
  // pieces of 128) and for 1 x 128 activation scales; 1 for dense matrices, whose sums know no steps.
  QD_HD constexpr int64_t k_align(bool block_scales = false) const {
    if (!is_w4) return 1;
    return group_size == 0 || block_scales ? kPieceK : group_size;
  }
};

// What one rank holds of a row-parallel matrix. The rank's matrix is [n, k()]: the unsharded columns
// [pad_begin, pad_end), with zero codes outside of [k_begin, k_end). Column j of it is column pad_begin + j of the
// unsharded matrix, so k32 steps, groups and even or odd positions lie as they do there.
struct KShard {
  KFormat format;
  int64_t k_begin = 0, k_end = 0;      // columns that the rank holds, unsharded
  int64_t pad_begin = 0, pad_end = 0;  // the same rounded out to k_align (pad_end not beyond K), unsharded
  friend bool operator==(const KShard&, const KShard&) = default;

  QD_HD constexpr int64_t k() const { return pad_end - pad_begin; }
  QD_HD constexpr int64_t held() const { return k_end - k_begin; }
  // Place of the first held column in the rank's matrix: its input row has `k_offset` zeros, `held` values, zeros.
  QD_HD constexpr int64_t k_offset() const { return k_begin - pad_begin; }
  // Groups whose scales the rank holds, whole, counted in the unsharded row; one scale a channel is group 0. Dense:
  // none.
  QD_HD constexpr int64_t group_begin() const { return per_group() == 0 ? 0 : pad_begin / per_group(); }
  QD_HD constexpr int64_t group_end() const {
    if (!format.is_w4) return 0;
    return per_group() == 0 ? 1 : ceil_div(pad_end, per_group());
  }
  QD_HD constexpr int64_t num_groups() const { return group_end() - group_begin(); }
  QD_HD constexpr bool holds(int64_t column) const { return column >= k_begin && column < k_end; }

 private:
  QD_HD constexpr int64_t per_group() const { return format.is_w4 ? format.group_size : 0; }
};

KShard k_shard(const KFormat& format, Range held, bool block_scales = false);

// A feed-forward of one rank: rows `columns` of gate and of up (each cut for itself), the same columns of down's K.
struct MlpShard {
  Range columns;
  KShard down;
  friend bool operator==(const MlpShard&, const MlpShard&) = default;
  bool empty() const { return columns.size() == 0; }  // the layer has none
};

struct AttentionShard {
  HeadShard heads;
  Range q_rows, kv_rows;  // rows of q_proj; of k_proj and v_proj
  KShard o;
  friend bool operator==(const AttentionShard&, const AttentionShard&) = default;
};

struct LayerShape {
  bool qkv_w4 = false;
  KFormat o;                                      // k = heads * head_dim
  KFormat experts_down, shared_down, dense_down;  // k = width; 0: none
};

// The dimensions of a model that are cut.
struct ModelShape {
  int64_t vocabulary = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  std::vector<LayerShape> layers;
  // 0: cut_width() chooses. Else cuts of all widths lie at multiples of this: a multiple of 8 (8: as even as possible).
  int64_t width_unit = 0;
};

struct LayerShard {
  AttentionShard attention;
  MlpShard experts, shared, dense;
  friend bool operator==(const LayerShard&, const LayerShard&) = default;
};

// Everything that one rank holds of a model. Norms, router and shared-expert gate are whole on every rank.
struct ModelShard {
  int rank = 0;
  int ranks = 1;
  Range vocabulary;  // rows of embedding and head
  std::vector<LayerShard> layers;

  // The bias of a row-parallel layer (o_proj, down) is added once, by rank 0, to its partial sum.
  bool adds_row_parallel_bias() const { return rank == 0; }
};

// The shards of all ranks. Errors kUnsupported: a size that leaves a rank without a query head, without 8 columns of a
// width, or without 8 rows of the vocabulary; W4A8 projections of heads that are no multiple of 8; more than kMaxRanks;
// each with rule, numbers and legal sizes. kInvalidArgument: a width_unit that is no multiple of 8.
Result<std::vector<ModelShard>> plan_shards(const ModelShape& shape, int ranks);

}  // namespace quadrille::layout
