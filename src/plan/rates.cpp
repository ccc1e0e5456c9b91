// SPDX-License-Identifier: Apache-2.0
// Constants with their sources. A new measurement changes a line here and the table in docs/scaling.md.
#include "plan/rates.h"

#include <cmath>

namespace quadrille::plan {
namespace {

constexpr const char* kGemmTable = "fitted to docs/benchmarks.md 2026-11-22, H100, grouped product, exact";
constexpr const char* kLayerTable = "fitted to docs/benchmarks.md 2026-11-22, H100, layers, exact";
constexpr const char* kSameChip = "that of the H100: the same multiprocessors and power";
constexpr double kGB = 1e9, kTB = 1e12, kTera = 1e12;

GpuRates h100() {
  GpuRates r;
  r.name = "h100";
  r.memory = {"memory", 81559.0 * 1048576, "bytes", Basis::kAssumed, "H100 80GB HBM3 SXM, as commonly reported"};
  r.reserve = {"reserve", 2.0 * 1073741824, "bytes", Basis::kAssumed, "driver, NCCL, graphs"};
  r.bandwidth = {"bandwidth", 3.0 * kTB, "bytes/s", Basis::kMeasured,
                 "slope of the grouped product over bytes at 1 row an expert; a copy reached 3.02"};
  r.gemm_start = {"gemm_start", 6.0, "us", Basis::kMeasured, kGemmTable};
  r.kernel_start = {"kernel_start", 1.25, "us", Basis::kMeasured,
                    "fitted to docs/benchmarks.md, layers at 1 token: 5 us for 4 row-wise kernels"};
  r.row_bandwidth = {"row_bandwidth", 1.64 * kTB, "bytes/s", Basis::kMeasured, kLayerTable};
  r.tile_start = {"tile_start", 0.05e-12, "token s/FLOP", Basis::kMeasured, kGemmTable};
  r.tensor = {Rate{"tensor_g32", 620 * kTera, "FLOP/s", Basis::kMeasured, kGemmTable},
              Rate{"tensor_g64", 738 * kTera, "FLOP/s", Basis::kDerived, "between groups of 32 and of 128"},
              Rate{"tensor_g128", 857 * kTera, "FLOP/s", Basis::kMeasured, kGemmTable}};
  r.output = {Rate{"output_g32", 1.08e-12, "s/value", Basis::kMeasured, kGemmTable},
              Rate{"output_g64", 0.985e-12, "s/value", Basis::kDerived, "between groups of 32 and of 128"},
              Rate{"output_g128", 0.89e-12, "s/value", Basis::kMeasured, kGemmTable}};
  r.bf16 = {"bf16", 735 * kTera, "FLOP/s", Basis::kDerived, "cuBLASLt bf16 8192^3 reached 670-800 on an H100"};
  r.attention_share = {"attention_share", 0.7, "", Basis::kAssumed, "no attention kernel was measured on a GPU"};
  return r;
}

void derive(Rate* rate, const char* source) {
  rate->basis = weaker(rate->basis, Basis::kDerived);
  rate->source = source;
}

GpuRates h200() {
  GpuRates r = h100();
  for (Rate* rate : {&r.gemm_start, &r.kernel_start, &r.tile_start, &r.tensor[0], &r.tensor[1], &r.tensor[2],
                     &r.output[0], &r.output[1], &r.output[2], &r.bf16}) {
    derive(rate, kSameChip);
  }
  r.name = "h200";
  r.memory = {"memory", 143771.0 * 1048576, "bytes", Basis::kAssumed, "H200 SXM, as commonly reported"};
  r.bandwidth = {"bandwidth", 4.3 * kTB, "bytes/s", Basis::kDerived, "a copy reached about 4.3 of 4.8 on an H200"};
  r.row_bandwidth = {"row_bandwidth", 1.64 * 4.3 / 3.0 * kTB, "bytes/s", Basis::kDerived,
                     "the H100's, times the ratio of bandwidths"};
  return r;
}

// 78 of the same multiprocessors with a seventh of the tensor rate each.
GpuRates h20() {
  GpuRates r = h100();
  constexpr double kFewer = 132.0 / 78;
  constexpr const char* kFewerSms = "the H100's, by the number of multiprocessors";
  r.name = "h20";
  r.memory = {"memory", 97871.0 * 1048576, "bytes", Basis::kAssumed, "H20 96GB, as published"};
  r.bandwidth = {"bandwidth", 3.6 * kTB, "bytes/s", Basis::kAssumed, "nine tenths of the published 4.0"};
  for (Rate* rate : {&r.tile_start, &r.output[0], &r.output[1], &r.output[2]}) {
    rate->value *= kFewer;
    rate->basis = Basis::kAssumed;
    rate->source = kFewerSms;
  }
  derive(&r.gemm_start, kSameChip);
  derive(&r.kernel_start, kSameChip);
  r.row_bandwidth = {"row_bandwidth", 1.64 / kFewer * kTB, "bytes/s", Basis::kAssumed, kFewerSms};
  for (Rate* rate : {&r.tensor[0], &r.tensor[1], &r.tensor[2]}) {
    *rate = {rate->name, 266 * kTera, "FLOP/s", Basis::kAssumed, "nine tenths of the published 296"};
  }
  r.bf16 = {"bf16", 133 * kTera, "FLOP/s", Basis::kAssumed, "nine tenths of the published 148"};
  return r;
}

constexpr const char* kGpuNames[] = {"h100", "h200", "h20"};

// Measured with NCCL 2.28.9 on two H200s of one host, NV18, CUDA graph, 2026-11-22. all_reduce: the size of the vector;
// all_gather: what each rank gives; all_to_all: half of the buffer, the other half stays.
constexpr double kKi = 1024, kMi = 1048576;
constexpr LinkPoint kAllReduce[] = {{4 * kKi, 10.7}, {16 * kKi, 13.0}, {64 * kKi, 11.8}, {256 * kKi, 14.1}, {kMi, 20.0},
                                    {4 * kMi, 37.7}, {16 * kMi, 79},   {64 * kMi, 256},  {256 * kMi, 899}};
constexpr LinkPoint kAllGather[] = {{4 * kKi, 10.8}, {16 * kKi, 10.1}, {64 * kKi, 11.4}, {256 * kKi, 13.6}, {kMi, 25.6},
                                    {4 * kMi, 46},   {16 * kMi, 101},  {64 * kMi, 298},  {256 * kMi, 1051}};
constexpr LinkPoint kAllToAll[] = {{2 * kKi, 10.3},   {8 * kKi, 13.2}, {32 * kKi, 12.6},
                                   {128 * kKi, 13.0}, {kMi / 2, 18.1}, {2 * kMi, 26.2},
                                   {8 * kMi, 62},     {32 * kMi, 147}, {128 * kMi, 480}};

}  // namespace

const char* basis_name(Basis basis) {
  constexpr const char* kNames[] = {"measured", "derived", "assumed, not measured"};
  return kNames[static_cast<int>(basis)];
}

std::vector<Rate> GpuRates::all() const {
  return {memory,    reserve,   bandwidth, gemm_start, kernel_start, row_bandwidth, tile_start,     tensor[0],
          tensor[1], tensor[2], output[0], output[1],  output[2],    bf16,          attention_share};
}

std::span<const char* const> gpu_names() {
  return kGpuNames;
}

Result<GpuRates> gpu_rates(const std::string& name) {
  if (name == "h100") return h100();
  if (name == "h200") return h200();
  if (name == "h20") return h20();
  return make_error(ErrorCode::kInvalidArgument, "no GPU is named '{}': h100, h200, h20", name);
}

size_t rate_index(const LinearForm& form) {
  return form.group_size == 32 ? 0 : form.group_size == 64 ? 1 : 2;
}

std::span<const LinkPoint> link_curve(LinkKind kind) {
  if (kind == LinkKind::kAllReduce) return kAllReduce;
  if (kind == LinkKind::kAllGather) return kAllGather;
  return kAllToAll;
}

const char* link_curve_source() {
  return "measured with NCCL 2.28.9 on two H200s, NV18, 2026-11-22";
}

double curve_us(std::span<const LinkPoint> curve, double bytes) {
  if (bytes <= curve.front().bytes) return curve.front().us;
  if (bytes >= curve.back().bytes) return curve.back().us * bytes / curve.back().bytes;
  size_t i = 1;
  while (curve[i].bytes < bytes) ++i;
  const LinkPoint &a = curve[i - 1], &b = curve[i];
  const double share = std::log(bytes / a.bytes) / std::log(b.bytes / a.bytes);
  return a.us * std::pow(b.us / a.us, share);
}

std::vector<Rate> LinkRates::all() const {
  return {one_shot_start, one_shot_bandwidth, one_shot_bytes, host_bandwidth, host_share, host_start};
}

const LinkRates& link_rates() {
  static const LinkRates rates = {
      {"one_shot_start", 3.5, "us", Basis::kAssumed, "target of the one-shot all-reduce: at most 5 us at 16 KiB"},
      {"one_shot_bandwidth", 150 * kGB, "bytes/s", Basis::kAssumed, "half of what NCCL reaches with large vectors"},
      {"one_shot_bytes", 256 * kKi, "bytes", Basis::kDerived, "where the one-shot all-reduce ends, by design"},
      {"host_bandwidth", 50 * kGB, "bytes/s", Basis::kAssumed, "400 Gb/s InfiniBand for each GPU, nominal"},
      {"host_share", 0.8, "", Basis::kAssumed, "part of the nominal rate that is reached"},
      {"host_start", 25, "us", Basis::kAssumed, "an exchange between hosts that moves nothing"},
  };
  return rates;
}

}  // namespace quadrille::plan
