// SPDX-License-Identifier: Apache-2.0
// A product takes the larger of what memory and tensor cores need, rounded where they meet: the 5-norm of both.
#include "plan/time.h"

#include <algorithm>
#include <cmath>

#include "layout/w4_hopper64.h"

namespace quadrille::plan {
namespace {

constexpr double kMeet = 5;
constexpr double kMicro = 1e6;
constexpr int64_t kTiles[] = {8, 16, 32, 64, 128};
constexpr int64_t kLargestTile = 128;

double meet(double a, double b) {
  return std::pow(std::pow(a, kMeet) + std::pow(b, kMeet), 1 / kMeet);
}

// The rule of the kernels (kernels/cuda/w4a8_gemm/choose.cpp): the smallest tile that holds the rows of an average
// expert that has any.
int64_t choose_tile(double experts, double rows) {
  const double mean = std::ceil(rows / std::max(1.0, std::min(experts, rows)));
  for (const int64_t tile : kTiles) {
    if (mean <= static_cast<double>(tile)) return tile;
  }
  return kLargestTile;
}

// FLOP/s of a tile: tokens / (start + tokens * slope), with the slope at which the largest tile has its measured rate.
double tile_rate(const GpuRates& rates, const LinearForm& form, int64_t tile) {
  constexpr auto kLargest = static_cast<double>(kLargestTile);
  const double start = rates.tile_start.value;
  const double slope = std::max(0.0, (kLargest / rates.tensor[rate_index(form)].value - start) / kLargest);
  return static_cast<double>(tile) / (start + static_cast<double>(tile) * slope);
}

}  // namespace

double product_us(const GpuRates& rates, const GroupedProduct& p) {
  const layout::W4Hopper64 matrix{p.n, p.k, p.form.group_size, false};
  const double rows = p.experts * p.routing.rows_per_expert();
  const double bytes = p.experts * p.routing.share_hit() * static_cast<double>(matrix.num_bytes()) +
                       rows * static_cast<double>(p.k + 4) + rows * static_cast<double>(p.n) * p.output_bytes;
  const int64_t tile = choose_tile(p.experts, p.choice_rows);
  const double computed = p.experts * p.routing.tiles_per_expert(tile) * static_cast<double>(tile);
  const auto n = static_cast<double>(matrix.padded_n()), k = static_cast<double>(matrix.padded_k());
  const double memory = rates.gemm_start.value + bytes / rates.bandwidth.value * kMicro;
  const double tensor =
      computed * n * (2 * k / tile_rate(rates, p.form, tile) + rates.output[rate_index(p.form)].value) * kMicro;
  return meet(memory, tensor);
}

double rows_us(const GpuRates& rates, double bytes) {
  return rates.kernel_start.value + bytes / rates.row_bandwidth.value * kMicro;
}

ExpertTime expert_time(const GpuRates& rates, const ExpertWork& w) {
  ExpertTime time;
  const auto hidden = static_cast<double>(w.hidden), columns = static_cast<double>(w.columns);
  // GEMM1 writes one bf16 value for a pair of gate and up.
  time.gemm1 = product_us(rates, {w.experts, w.routing, 2 * w.columns, w.hidden, w.up, w.choice_rows, 1});
  time.gemm2 = product_us(rates, {w.experts, w.routing, w.hidden, w.down_k, w.down, w.choice_rows, 2});
  // Quantise: bf16 in, a byte out, for the input rows and for the hidden ones; combine: bf16 rows in.
  const double rows = w.experts * w.routing.rows_per_expert();
  const double bytes = rows * (3 * hidden + 3 * columns + 2 * hidden) + 2 * hidden * w.tokens;
  time.rows = 3 * rates.kernel_start.value + rows_us(rates, bytes);
  return time;
}

double linear_us(const GpuRates& rates, int64_t n, int64_t k, const LinearForm& form, double rows) {
  if (rows <= 0 || n <= 0) return 0;
  if (form.is_w4) return product_us(rates, {1, {rows, 1}, n, k, form, rows, 2});
  const auto dn = static_cast<double>(n), dk = static_cast<double>(k);
  const double bytes = 2 * (dn * dk + rows * (dn + dk));
  return meet(rates.gemm_start.value + bytes / rates.bandwidth.value * kMicro,
              2 * dn * dk * rows / rates.bf16.value * kMicro);
}

double attention_us(const GpuRates& rates, const AttentionWork& work) {
  const double share = rates.attention_share.value;
  return rates.kernel_start.value +
         std::max(work.cache_bytes / (rates.bandwidth.value * share), work.flops / (rates.bf16.value * share)) * kMicro;
}

}  // namespace quadrille::plan
