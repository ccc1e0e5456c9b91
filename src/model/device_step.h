// SPDX-License-Identifier: Apache-2.0
// A step as a device reads it: one block of integers in page-locked memory, copied at once, padded to a size for which
// a graph was captured. Integers alone, so it is tested without a GPU. Called by device_decoder.cpp and
// device_model.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/api/device_decoder_problems.h"
#include "model/forward.h"

namespace quadrille::model {

// Tokens that a decode step is padded to; 0 where there is no bucket.
inline constexpr int64_t kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
int64_t bucket_of(int64_t num_tokens);
// Positions that the page table of a step is padded to: 512 times a power of two, at most `max_positions` in whole
// pages.
int64_t context_bucket_of(int64_t positions, int64_t max_positions);

// What of a step decides grids and addresses: two steps of equal shape run the same graph.
struct StepShape {
  int64_t num_tokens = 0;      // padding included
  int64_t num_sequences = 0;   // rows of the page table
  int64_t num_logit_rows = 0;  // padding included
  int64_t num_singles = 0;     // kernels::DeviceAttention
  int64_t num_tiles = 0;
  int64_t max_context = 0;        // positions are below it; the page table's rows have max_context / 64 pages
  bool every_token_alone = true;  // decode: singles 0..num_tokens-1, and row r of the logits is token r
  bool draws = false;             // every logit row has a rule; without, all are greedy
  friend bool operator==(const StepShape&, const StepShape&) = default;
};

// Where each array of the block begins, in integers; arrays begin at multiples of 64.
struct StepBlock {
  int64_t ids = 0, positions = 0, sequences = 0, logit_rows = 0, singles = 0, tiles = 0, rules = 0, page_table = 0;
  int64_t total = 0;
};
StepBlock block_of(const StepShape& shape);

// Tokens [begin, end) of a step, and the rows of its logits among them: what one pass over the layers takes.
struct StepPiece {
  int64_t begin = 0, end = 0;
  int64_t row_begin = 0, row_end = 0;
};
// In order, of at most `max_tokens` tokens of at most `max_sequences` sequences each: a step that is longer runs in
// pieces, which changes no bit (a piece finds the keys and values of the ones before it in the pages).
std::vector<StepPiece> cut_step(const Step& step, int64_t max_tokens, int64_t max_sequences);

// Who is attended how (kernels::plan_attention), and the shape that follows. A piece that is a decode step takes a
// bucket of at most `most_padded` tokens where there is one.
struct PlannedPiece {
  StepPiece piece;
  StepShape shape;
  std::vector<int32_t> rows;       // rows of the step's page table that the piece uses, by first appearance
  std::vector<int32_t> sequences;  // [tokens] index into `rows`
  std::vector<int32_t> singles;
  std::vector<kernels::QueryTile> tiles;
  std::span<const kernels::SampleRule> rules;  // of all logit rows where shape.draws
};
PlannedPiece plan_piece(const Step& step, const StepPiece& piece, int64_t tile_tokens, int64_t most_padded,
                        int64_t max_positions);

// Fills block_of(shape).total integers. Padding: id -1, position -1, sequence 0, a greedy rule.
void pack_step(const Step& step, const PlannedPiece& planned, std::span<int32_t> block);

}  // namespace quadrille::model
