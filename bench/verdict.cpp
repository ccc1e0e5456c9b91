// SPDX-License-Identifier: Apache-2.0
#include "bench/verdict.h"

#include <algorithm>

namespace quadrille::bench {
namespace {

double quotient(double work, double rate) {
  return rate > 0 ? work / rate : 0;
}

}  // namespace

const char* bound_name(Bound bound) {
  switch (bound) {
    case Bound::kRead:
      return "read";
    case Bound::kDot:
      return "dot";
    case Bound::kDecode:
      return "decode";
  }
  return "";
}

double floor_seconds(const Work& work, const Limits& limits) {
  return std::max({quotient(work.bytes, limits.read), quotient(work.operations, limits.dot),
                   quotient(work.weights, limits.decode)});
}

Bound bound_of(const Work& work, const Limits& limits) {
  const double floor = floor_seconds(work, limits);
  if (quotient(work.bytes, limits.read) == floor) return Bound::kRead;
  return quotient(work.operations, limits.dot) == floor ? Bound::kDot : Bound::kDecode;
}

double floor_fraction(const Work& work, const Limits& limits, double seconds) {
  return quotient(floor_seconds(work, limits), seconds);
}

std::optional<Fall> largest_fall(std::span<const double> fractions) {
  std::optional<Fall> largest;
  for (size_t i = 0; i + 1 < fractions.size(); ++i) {
    const double share = 1 - quotient(fractions[i + 1], fractions[i]);
    if (fractions[i] > 0 && share > 0 && (!largest || share > largest->share)) largest = Fall{i, share};
  }
  return largest;
}

std::optional<RowTarget> row_target(std::string_view table, int64_t rows) {
  using Of = RowTarget::Of;
  if (table == "avx2" && rows == 1) return RowTarget{Of::kFloor, 0.70};
  const bool is_amx = table == "amx";
  if (table != "avx512" && table != "vdpbf16" && !is_amx) return {};
  if (rows == 1) return RowTarget{Of::kRead, 0.80};
  if (is_amx) return rows >= 128 ? std::optional(RowTarget{Of::kDot, 0.45}) : std::nullopt;
  if (rows == 4) return RowTarget{Of::kFloor, 0.60};
  return rows >= 64 ? std::optional(RowTarget{Of::kDot, 0.85}) : std::nullopt;
}

std::optional<double> layer_target(DotUnit unit, int64_t tokens) {
  if (unit == DotUnit::kSse2 || unit == DotUnit::kAvx2Fma) return {};
  if (tokens == 1 || tokens == 4) return 0.80;
  if (tokens == 16) return 0.75;
  if (tokens == 64) return 0.70;
  if (tokens == 512) return unit == DotUnit::kAmxBf16 ? 0.30 : 0.75;
  return {};
}

double decode_target(int64_t context) {
  return context >= 2048 ? 0.65 : 0.75;
}

double prefill_target(DotUnit unit) {
  return unit == DotUnit::kAmxBf16 ? 0.15 : 0.60;
}

}  // namespace quadrille::bench
