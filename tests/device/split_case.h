// SPDX-License-Identifier: Apache-2.0
// Layers that are split over tensor-parallel ranks, small enough for the host: the random matrices as a checkpoint has
// them, what each rank holds of them on the CPU and on the device, and what the CPU table `hopper` gives with as many
// rank threads.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "device/device_memory.h"
#include "layout/shard_plan.h"
#include "moe/device_layer.h"
#include "moe/layer.h"
#include "prepare/prepare_w4.h"

namespace quadrille::testing {

struct SplitSpec {
  const char* name = "";
  int ranks = 2;
  int64_t tokens = 7;
  int64_t hidden = 256, width = 256, experts = 6, top_k = 2;
  int64_t group = 128;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  int64_t shared_width = 0;  // 0: no shared expert
  bool shared_gate = false;
  bool bias = false;
  bool weight_on_input = false;
  moe::SplitScale scale = moe::SplitScale::kAgreed;
  kernels::Activation activation = kernels::Activation::kSilu;
  bool nonfinite = false;
  int64_t width_unit = 0;  // 0: as layout::cut_width chooses
  uint64_t seed = 1;

  std::vector<layout::Range> cut(int64_t whole) const;
  kernels::ActivationRule rule() const;
};
inline void PrintTo(const SplitSpec& spec, std::ostream* out) {
  *out << spec.name << " over " << spec.ranks;
}

// One matrix of a checkpoint.
struct SplitMatrix {
  int64_t n = 0, k = 0, group = 0;
  std::vector<uint32_t> packed;  // uint4b8
  std::vector<uint16_t> scales;
  std::vector<float> bias;  // [n] or empty

  SplitMatrix(int64_t rows, int64_t columns, int64_t group_size, bool with_bias, uint64_t seed, int64_t expert,
              int matrix);
  prepare::CanonicalW4 view() const;
};

// A rank's matrices on the CPU.
struct CpuShard {
  std::vector<prepare::PreparedW4> matrices;
  std::vector<kernels::W4Matrix> views;
  std::vector<std::vector<float>> bias;
  std::vector<const float*> bias_views;
  moe::W4Linear linear;

  void add(prepare::PreparedW4 matrix, std::vector<float> with_bias);
  moe::W4Linear finish(int64_t n, int64_t k, int64_t group);
};
struct CpuMlpShard {
  CpuShard gate_up, down;
  moe::GatedMlp mlp;
};

// The experts of one kind.
class SplitMlp {
 public:
  SplitMlp(const SplitSpec& spec, int64_t experts, int64_t width, int64_t first_expert);

  CpuMlpShard on_cpu(int rank) const;
  // What it names lies in `memory`.
  moe::DeviceMlp on_device(const kernels::DeviceTable& table, int rank, Memory* memory, device::Stream stream) const;

 private:
  layout::KShard shard(int rank) const;

  SplitSpec spec_;
  int64_t width_;
  std::vector<std::vector<SplitMatrix>> up_;  // gate and up, or the one
  std::vector<SplitMatrix> down_;
};

// One matrix on the device from parts as a checkpoint has them; row_absmax where the part has it.
moe::DeviceLinear prepare_shards(const kernels::DeviceTable& table,
                                 const std::vector<std::vector<prepare::CanonicalW4>>& experts,
                                 const std::vector<std::vector<std::vector<float>>>& bias, kernels::Numerics numerics,
                                 Memory* memory, device::Stream stream);

// A rank's layer and batch on its device.
struct SplitRank {
  PoolMemory memory;
  moe::DeviceMoeLayer layer;
  moe::DeviceBatch batch;
};

class SplitCase {
 public:
  explicit SplitCase(const SplitSpec& spec);
  const SplitSpec& spec() const { return spec_; }

  // layer.ranks.tensor stays to be set.
  void make_rank(const kernels::DeviceTable& table, int rank, device::Stream stream, SplitRank* out) const;
  // Rows of hidden bf16 codes that every rank must give: run_layer with `hopper` on rank threads.
  std::vector<uint16_t> expected() const;

 private:
  SplitSpec spec_;
  SplitMlp experts_;
  std::optional<SplitMlp> shared_;
  std::vector<uint16_t> x_, gate_;
  std::vector<int32_t> ids_;
  std::vector<float> weights_;
};

}  // namespace quadrille::testing
