// SPDX-License-Identifier: Apache-2.0
// Makes canonical matrices on the host and prepares them, an expert a thread.
#include "device/cpu_stack.h"

#include "device/must.h"
#include "device/random_data.h"

namespace quadrille::testing {
namespace {

// A part's canonical matrix on the host.
struct HostPart {
  std::vector<uint32_t> packed;
  std::vector<uint16_t> scales;

  HostPart(const StackSpec& spec, int64_t expert, int part) {
    const uint64_t codes = matrix_seed(spec.seed, spec.first_expert + expert, spec.matrix + part, Part::kCodes);
    const uint64_t scale = matrix_seed(spec.seed, spec.first_expert + expert, spec.matrix + part, Part::kScales);
    packed.resize(static_cast<size_t>(spec.part_n * spec.k / 8));
    scales.resize(static_cast<size_t>(spec.part_n * spec.groups()));
    for (size_t i = 0; i < packed.size(); ++i) packed[i] = code_word(codes, static_cast<int64_t>(i));
    for (size_t i = 0; i < scales.size(); ++i) scales[i] = scale_bits(scale, static_cast<int64_t>(i));
  }
};

}  // namespace

CpuStack make_cpu_stack(const StackSpec& spec, const std::vector<int64_t>& experts, ThreadPool* pool) {
  CpuStack stack;
  stack.matrices.resize(experts.size());
  if (spec.bias) stack.bias.resize(experts.size());
  const auto prepare_one = [&](int64_t index) {
    const auto place = static_cast<size_t>(index);
    std::vector<HostPart> parts;
    std::vector<prepare::CanonicalW4> matrices;
    for (int part = 0; part < spec.num_parts; ++part) parts.emplace_back(spec, experts[place], part);
    for (const HostPart& part : parts) {
      matrices.push_back({spec.part_n, spec.k, spec.group, part.packed.data(), nullptr, part.scales.data()});
    }
    stack.matrices[place] = must(prepare::prepare_w4(matrices, spec.numerics, nullptr));
    if (!spec.bias) return;
    for (int part = 0; part < spec.num_parts; ++part) {
      const uint64_t seed = matrix_seed(spec.seed, spec.first_expert + experts[place], spec.matrix + part, Part::kBias);
      for (int64_t i = 0; i < spec.part_n; ++i) stack.bias[place].push_back(small_number(seed, i));
    }
  };
  pool->run(static_cast<int64_t>(experts.size()), prepare_one);
  for (const auto& matrix : stack.matrices) stack.views.push_back(matrix.view());
  for (const auto& bias : stack.bias) stack.bias_views.push_back(bias.data());
  stack.linear = {static_cast<int64_t>(experts.size()),         spec.n(), spec.k, spec.group, stack.views.data(),
                  spec.bias ? stack.bias_views.data() : nullptr};
  return stack;
}

}  // namespace quadrille::testing
