// SPDX-License-Identifier: Apache-2.0
// The numbers that a plan predicts with, each with its unit, where it comes from, and whether anybody measured it.
// docs/scaling.md tells how they were found.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "plan/shape.h"

namespace quadrille::plan {

// What a number, or a time made of several, stands on; the weakest part counts.
enum class Basis {
  kMeasured,  // on that GPU or those links
  kDerived,   // from measurements of another size or GPU, by a stated rule
  kAssumed,   // not measured
};
const char* basis_name(Basis basis);
constexpr Basis weaker(Basis a, Basis b) {
  return a < b ? b : a;
}

struct Rate {
  const char* name;
  double value;
  const char* unit;
  Basis basis;
  const char* source;
};

struct GpuRates {
  const char* name = "";
  Rate memory, reserve;        // bytes of the GPU; of these, for the driver, NCCL and graphs
  Rate bandwidth;              // of device memory, bytes/s
  Rate gemm_start;             // us of a W4A8 product that moves nothing
  Rate kernel_start;           // us of a row-wise kernel that moves nothing
  Rate row_bandwidth;          // of row-wise kernels, bytes/s
  Rate tile_start;             // of a token tile, in (operations/s)^-1 a token: small tiles reach less
  std::array<Rate, 3> tensor;  // FLOP/s of the largest tile with groups of 32, 64, and of 128 or a channel
  std::array<Rate, 3> output;  // s for each output value, likewise
  Rate bf16;                   // FLOP/s of bf16 products
  Rate attention_share;        // of bandwidth and of bf16 that attention reaches
  std::vector<Rate> all() const;
};

// "h100", "h200", "h20". kInvalidArgument for another, with the names.
Result<GpuRates> gpu_rates(const std::string& name);
std::span<const char* const> gpu_names();
// Index into GpuRates::tensor and output.
size_t rate_index(const LinearForm& form);

enum class LinkKind { kAllReduce, kAllGather, kAllToAll };

struct LinkPoint {
  double bytes;  // that leave a rank
  double us;
};
// Two GPUs of one host over NVLink, NCCL.
std::span<const LinkPoint> link_curve(LinkKind kind);
const char* link_curve_source();
// Straight between the points in logarithms; below the first its time, above the last its rate.
double curve_us(std::span<const LinkPoint> curve, double bytes);

struct LinkRates {
  Rate one_shot_start, one_shot_bandwidth;  // us, bytes/s that one rank reads from its peers
  Rate one_shot_bytes;                      // largest vector that goes that way
  Rate host_bandwidth, host_share;          // a GPU's network, bytes/s; the part of it that is reached
  Rate host_start;                          // us of an exchange between hosts
  std::vector<Rate> all() const;
};
const LinkRates& link_rates();

}  // namespace quadrille::plan
