// SPDX-License-Identifier: Apache-2.0
// Single experts of a random stack of 4-bit matrices (random_data.h) in the layout of the CPU tables.
#pragma once

#include <vector>

#include "core/thread_pool.h"
#include "kernels/api/device_problems.h"
#include "moe/linear.h"
#include "prepare/prepare_w4.h"

namespace quadrille::testing {

// One part (a down matrix, a plain linear layer, a gate without up) or two parts of equal rows.
struct StackSpec {
  int64_t experts = 1;
  int64_t part_n = 0;
  int num_parts = 1;
  int matrix = 0;  // kGate (with kUp behind it where there are two parts) or kDown
  int64_t k = 0;
  int64_t group = 128;
  kernels::Numerics numerics = kernels::Numerics::kExact;
  kernels::W4Source source = kernels::W4Source::kUint4b8;
  bool bias = false;
  int64_t first_expert = 0;  // number in the random data of the first expert
  uint64_t seed = 1;

  int64_t n() const { return part_n * num_parts; }
  int64_t groups() const { return group == 0 ? 1 : k / group; }
};

// The named experts in the CPU layout. bias pointers stay valid with the object.
struct CpuStack {
  std::vector<prepare::PreparedW4> matrices;
  std::vector<kernels::W4Matrix> views;
  std::vector<std::vector<float>> bias;
  std::vector<const float*> bias_views;
  moe::W4Linear linear;
};
CpuStack make_cpu_stack(const StackSpec& spec, const std::vector<int64_t>& experts, ThreadPool* pool);

}  // namespace quadrille::testing
