// SPDX-License-Identifier: Apache-2.0
// The shard plan (layout/shard_plan.h) applied to matrices as a checkpoint holds them, and the way back: gather(shard)
// is the matrix, bit for bit. The results go to any preparation (prepare_w4, prepare_hopper, prepare_bf16). Called by
// the loader of each rank.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/result.h"
#include "layout/shard_plan.h"
#include "prepare/prepare_bf16.h"
#include "prepare/prepare_w4.h"

namespace quadrille::prepare {

// Column-parallel (q, k, v, gate, up, head): rows of the matrix, a view into the source with every group of its K.
CanonicalW4 column_parallel_shard(const CanonicalW4& whole, layout::Range rows);
CanonicalDense column_parallel_shard(const CanonicalDense& whole, layout::Range rows);

// A canonical matrix with its memory. view() is valid as long as the object lives and is not moved from.
struct OwnedW4 {
  int64_t n = 0;
  int64_t k = 0;
  int64_t group_size = 0;
  kernels::W4Source source = kernels::W4Source::kUint4b8;
  std::vector<uint32_t> packed;   // [n, k/8] of kUint4b8 and kInt4
  std::vector<int8_t> codes;      // [n, k] of kInt8
  std::vector<uint16_t> scales;   // [n, groups] bf16
  std::vector<float> row_absmax;  // [n] or empty

  CanonicalW4 view() const;
  friend bool operator==(const OwnedW4&, const OwnedW4&) = default;
};
struct OwnedDense {
  int64_t n = 0;
  int64_t k = 0;
  DenseType type = DenseType::kBf16;
  std::vector<std::byte> data;  // [n, k]

  CanonicalDense view() const;
  friend bool operator==(const OwnedDense&, const OwnedDense&) = default;
};

// Over which groups the channel scale of `vllm` is taken in a row-parallel matrix. `exact` has none.
enum class ChannelScale {
  kWholeRow,   // all groups of the unsharded row: the prepared bytes are those of one rank (the contract)
  kOwnGroups,  // the groups that the shard holds: what engines do that split scales after sharding
};

// Row-parallel (down, o): the columns of `shard` with zero codes where the rank holds none, whole groups' scales, and
// for kWholeRow the absmax of each unsharded row. A copy: the columns of a row are not contiguous in the source. The
// dense form is [n, held] without padding. Errors: kInvalidData: a scale that is NaN or infinite, by row and group.
// `whole` has passed check_canonical() and is the matrix that `shard` was planned for (QD_CHECK).
Result<OwnedW4> row_parallel_shard(const CanonicalW4& whole, const layout::KShard& shard, ChannelScale channel);
OwnedDense row_parallel_shard(const CanonicalDense& whole, const layout::KShard& shard);

// max over the groups of |scale|, for each row. Error kInvalidData as above.
Result<std::vector<float>> row_absmax(const CanonicalW4& matrix);

// What one rank brings to a gather: its rows (column-parallel), or its columns (row-parallel).
template <typename Matrix>
struct ColumnPart {
  Matrix matrix;
  layout::Range rows;
};
template <typename Matrix>
struct RowPart {
  Matrix matrix;
  layout::KShard shard;
};

// The unsharded matrix again, in the spelling of the shards. Ranges may overlap (a KV head on several ranks, a group
// cut in two): copies must agree. Errors kInvalidData: a row or column that no rank holds, copies that differ, a code
// outside of the held columns that is not zero; by rank and place. kInvalidArgument: shards that do not fit each other.
Result<OwnedW4> gather_column_parallel(std::span<const ColumnPart<CanonicalW4>> parts, int64_t n);
Result<OwnedW4> gather_row_parallel(std::span<const RowPart<CanonicalW4>> parts);
Result<OwnedDense> gather_column_parallel(std::span<const ColumnPart<CanonicalDense>> parts, int64_t n);
Result<OwnedDense> gather_row_parallel(std::span<const RowPart<CanonicalDense>> parts);

}  // namespace quadrille::prepare
