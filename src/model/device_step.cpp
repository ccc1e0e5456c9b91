// SPDX-License-Identifier: Apache-2.0
// The arithmetic behind device_step.h.
#include "model/device_step.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "core/check.h"

namespace quadrille::model {
namespace {

constexpr int64_t kAlignInts = 64;
constexpr int64_t kLeastContext = 512;

bool is_decode(const Step& step, const StepPiece& piece, const PlannedPiece& planned) {
  if (planned.shape.num_tiles != 0) return false;
  const int64_t tokens = piece.end - piece.begin;
  if (piece.row_end - piece.row_begin != tokens) return false;
  for (int64_t t = 0; t < tokens; ++t) {
    if (step.logit_rows[static_cast<size_t>(piece.row_begin + t)] != piece.begin + t) return false;
  }
  return true;
}

std::span<const int32_t> part(std::span<const int32_t> all, int64_t begin, int64_t end) {
  return all.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

// Numbers the piece's sequences by first appearance.
void name_sequences(const Step& step, PlannedPiece* planned) {
  std::unordered_map<int32_t, int32_t> name_of;
  for (const int32_t sequence : part(step.sequences, planned->piece.begin, planned->piece.end)) {
    const auto [place, is_new] = name_of.try_emplace(sequence, static_cast<int32_t>(planned->rows.size()));
    if (is_new) planned->rows.push_back(sequence);
    planned->sequences.push_back(place->second);
  }
}

}  // namespace

int64_t bucket_of(int64_t num_tokens) {
  for (const int64_t bucket : kBuckets) {
    if (num_tokens <= bucket) return bucket;
  }
  return 0;
}

int64_t context_bucket_of(int64_t positions, int64_t max_positions) {
  int64_t bucket = kLeastContext;
  while (bucket < positions) bucket *= 2;
  const int64_t most = (max_positions + kPagePositions - 1) / kPagePositions * kPagePositions;
  return std::min(bucket, std::max(most, kPagePositions));
}

StepBlock block_of(const StepShape& shape) {
  StepBlock block;
  const auto take = [&block](int64_t count) {
    const int64_t at = block.total;
    block.total += (count + kAlignInts - 1) / kAlignInts * kAlignInts;
    return at;
  };
  block.ids = take(shape.num_tokens);
  block.positions = take(shape.num_tokens);
  block.sequences = take(shape.num_tokens);
  if (!shape.every_token_alone) {
    block.logit_rows = take(shape.num_logit_rows);
    block.singles = take(shape.num_singles);
    block.tiles = take(shape.num_tiles * static_cast<int64_t>(sizeof(kernels::QueryTile) / sizeof(int32_t)));
  }
  if (shape.draws) block.rules = take(shape.num_logit_rows * static_cast<int64_t>(sizeof(kernels::SampleRule) / 4));
  block.page_table = take(shape.num_sequences * (shape.max_context / kPagePositions));
  return block;
}

std::vector<StepPiece> cut_step(const Step& step, int64_t max_tokens, int64_t max_sequences) {
  QD_CHECK(max_tokens > 0 && max_sequences > 0, "a piece has tokens of some sequence");
  const auto num_tokens = static_cast<int64_t>(step.ids.size());
  const auto num_rows = static_cast<int64_t>(step.logit_rows.size());
  std::vector<StepPiece> pieces;
  int64_t row = 0;
  for (int64_t begin = 0; begin < num_tokens;) {
    std::unordered_set<int32_t> seen;
    int64_t end = begin;
    for (; end < std::min(begin + max_tokens, num_tokens); ++end) {
      const int32_t sequence = step.sequences[static_cast<size_t>(end)];
      if (static_cast<int64_t>(seen.size()) == max_sequences && !seen.contains(sequence)) break;
      seen.insert(sequence);
    }
    StepPiece piece{begin, end, row, row};
    while (row < num_rows && step.logit_rows[static_cast<size_t>(row)] < end) ++row;
    piece.row_end = row;
    pieces.push_back(piece);
    begin = end;
  }
  return pieces;
}

PlannedPiece plan_piece(const Step& step, const StepPiece& piece, int64_t tile_tokens, int64_t most_padded,
                        int64_t max_positions) {
  PlannedPiece planned;
  planned.piece = piece;
  name_sequences(step, &planned);
  StepShape& shape = planned.shape;
  shape.num_tokens = piece.end - piece.begin;
  planned.singles.resize(static_cast<size_t>(shape.num_tokens));
  planned.tiles.resize(static_cast<size_t>(shape.num_tokens));
  const kernels::AttentionPlan plan = kernels::plan_attention(planned.sequences.data(), shape.num_tokens, tile_tokens,
                                                              planned.singles.data(), planned.tiles.data());
  planned.singles.resize(static_cast<size_t>(plan.num_singles));
  planned.tiles.resize(static_cast<size_t>(plan.num_tiles));
  shape.num_singles = plan.num_singles;
  shape.num_tiles = plan.num_tiles;
  shape.num_logit_rows = piece.row_end - piece.row_begin;
  shape.num_sequences = static_cast<int64_t>(planned.rows.size());
  int32_t last = 0;
  for (const int32_t position : part(step.positions, piece.begin, piece.end)) last = std::max(last, position);
  shape.max_context = context_bucket_of(last + 1, max_positions);
  shape.every_token_alone = is_decode(step, piece, planned);
  if (!shape.every_token_alone) return planned;
  const int64_t bucket = bucket_of(shape.num_tokens);
  if (bucket == 0 || bucket > most_padded) return planned;
  shape.num_tokens = shape.num_sequences = shape.num_logit_rows = shape.num_singles = bucket;
  return planned;
}

void pack_step(const Step& step, const PlannedPiece& planned, std::span<int32_t> block) {
  const StepShape& shape = planned.shape;
  const StepBlock places = block_of(shape);
  QD_CHECK(static_cast<int64_t>(block.size()) >= places.total, "room for the block");
  const auto [begin, end, row_begin, row_end] = planned.piece;
  const auto write = [&](int64_t place, std::span<const int32_t> values, int64_t count, int32_t padding) {
    int32_t* to = block.data() + place;
    std::copy(values.begin(), values.end(), to);
    std::fill(to + values.size(), to + count, padding);
  };
  write(places.ids, part(step.ids, begin, end), shape.num_tokens, -1);
  write(places.positions, part(step.positions, begin, end), shape.num_tokens, -1);
  write(places.sequences, planned.sequences, shape.num_tokens, 0);
  if (!shape.every_token_alone) {
    int32_t* rows = block.data() + places.logit_rows;
    for (int64_t r = row_begin; r < row_end; ++r) {
      *rows++ = step.logit_rows[static_cast<size_t>(r)] - static_cast<int32_t>(begin);
    }
    write(places.singles, planned.singles, shape.num_singles, 0);
    int32_t* tile = block.data() + places.tiles;
    for (const kernels::QueryTile& t : planned.tiles) {
      *tile++ = t.first_token;
      *tile++ = t.num_tokens;
    }
  }
  if (shape.draws) {
    const size_t bytes = planned.rules.size() * sizeof(kernels::SampleRule);
    const size_t room = static_cast<size_t>(shape.num_logit_rows) * sizeof(kernels::SampleRule);
    QD_CHECK(bytes <= room, "a rule a row");
    auto* const rules = reinterpret_cast<uint8_t*>(block.data() + places.rules);
    std::memcpy(rules, planned.rules.data(), bytes);
    std::memset(rules + bytes, 0, room - bytes);
  }
  // A page that is not there is never read: 0 keeps a wild one in bounds.
  const int64_t stride = shape.max_context / kPagePositions;
  int32_t* table = block.data() + places.page_table;
  std::fill(table, table + shape.num_sequences * stride, 0);
  for (const int32_t row : planned.rows) {
    const int32_t* from = step.page_table.data() + row * step.page_table_stride;
    for (int64_t i = 0; i < std::min(stride, step.page_table_stride); ++i) table[i] = std::max(from[i], 0);
    table += stride;
  }
}

}  // namespace quadrille::model
