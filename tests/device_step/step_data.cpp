// SPDX-License-Identifier: Apache-2.0
// Fills step_data.h once for the process.
#include "device_step/step_data.h"

#include "device/device_memory.h"
#include "device/fill.h"
#include "device/random_data.h"

namespace quadrille::testing {
namespace {

constexpr int64_t kGroup = 128;
constexpr int64_t kCodeBytes = kWidth * kHidden / 2;  // of each of the three matrices
constexpr int64_t kScaleBytes = kWidth * kHidden / kGroup * 2;

StackSpec stack_spec(int64_t experts, int64_t first_expert, bool down) {
  StackSpec spec;
  spec.experts = experts;
  spec.first_expert = first_expert;
  spec.part_n = down ? kHidden : kWidth;
  spec.num_parts = down ? 1 : 2;
  spec.matrix = down ? kDown : kGate;
  spec.k = down ? kWidth : kHidden;
  spec.group = kGroup;
  spec.seed = 77;
  return spec;
}

// top_k different experts of each token, and weights.
void make_routes(int64_t experts, int64_t top_k, uint64_t seed, std::vector<int32_t>* ids,
                 std::vector<float>* weights) {
  for (int64_t t = 0; t < kTokens; ++t) {
    const uint64_t first = hash(seed, static_cast<uint64_t>(t));
    for (int64_t j = 0; j < top_k; ++j) {
      // An odd step meets every expert of a power of two once.
      const uint64_t expert = first + static_cast<uint64_t>(j) * (2 * (first >> 32) + 1);
      ids->push_back(static_cast<int32_t>(expert % static_cast<uint64_t>(experts)));
      weights->push_back(0.25f + small_number(seed + 1, t * top_k + j) * 0.25f);
    }
  }
}

HostStack make_host_stack(int version) {
  HostStack stack;
  constexpr int64_t kMatrixBytes = kCodeBytes + kScaleBytes;
  stack.memory = must(device::PinnedBuffer::allocate(static_cast<size_t>(kSmallExperts * 3 * kMatrixBytes)));
  auto* next = static_cast<uint8_t*>(stack.memory.get());
  const auto seed = 900 + static_cast<uint64_t>(version);
  for (int64_t e = 0; e < kSmallExperts; ++e) {
    prepare::DeviceW4Expert gate_up, down;
    for (int matrix : {kGate, kUp, kDown}) {
      auto* codes = reinterpret_cast<uint32_t*>(next);
      auto* scales = reinterpret_cast<uint16_t*>(next + kCodeBytes);
      next += kMatrixBytes;
      for (int64_t i = 0; i < kCodeBytes / 4; ++i) codes[i] = code_word(matrix_seed(seed, e, matrix, Part::kCodes), i);
      for (int64_t i = 0; i < kScaleBytes / 2; ++i) {
        scales[i] = scale_bits(matrix_seed(seed, e, matrix, Part::kScales), i);
      }
      prepare::DeviceW4Expert& expert = matrix == kDown ? down : gate_up;
      expert.codes[matrix == kUp ? 1 : 0] = codes;
      expert.scales[matrix == kUp ? 1 : 0] = scales;
    }
    stack.gate_up.push_back(gate_up);
    stack.down.push_back(down);
  }
  return stack;
}

prepare::DeviceW4Source source_of(const std::vector<prepare::DeviceW4Expert>& experts, bool down) {
  prepare::DeviceW4Source source;
  source.part_n = down ? kHidden : kWidth;
  source.num_parts = down ? 1 : 2;
  source.k = down ? kWidth : kHidden;
  source.group_size = kGroup;
  source.experts = experts;
  source.on_host = true;
  return source;
}

}  // namespace

StepInput make_step_input(int version, Memory* memory, device::Stream stream) {
  StepInput in;
  const auto seed = 500 + static_cast<uint64_t>(version);
  std::vector<int64_t> numbers;
  // Rows of zeros would look the same in every version.
  for (int64_t key = 0; numbers.size() < static_cast<size_t>(kTokens); ++key) {
    if (row_kind(seed, key, false) == RowKind::kPlain) numbers.push_back(key);
  }
  auto* x = memory->take<uint16_t>(kTokens * kHidden, 16, stream);
  fill_activations(x, memory->copy_of(numbers, stream), kTokens, kHidden, false, seed, stream);
  in.x = x;
  std::vector<int32_t> ids, small_ids;
  std::vector<float> weights, small_weights;
  make_routes(kExperts, kTopK, seed, &ids, &weights);
  make_routes(kSmallExperts, kSmallTopK, seed + 50, &small_ids, &small_weights);
  in.ids = memory->copy_of(ids, stream);
  in.weights = memory->copy_of(weights, stream);
  in.small_ids = memory->copy_of(small_ids, stream);
  in.small_weights = memory->copy_of(small_weights, stream);
  return in;
}

StepData::StepData(device::Stream stream) : table_(must(kernels::device_table())) {
  const auto mlp = [&](int64_t experts, int64_t first_expert) {
    moe::DeviceMlp out;
    out.hidden = kHidden;
    out.width = kWidth;
    out.gate_up = make_device_stack(*table_, stack_spec(experts, first_expert, false), &memory_, stream);
    out.down = make_device_stack(*table_, stack_spec(experts, first_expert, true), &memory_, stream);
    return out;
  };
  large_.rule.num_experts = kExperts;
  large_.rule.top_k = kTopK;
  large_.experts = mlp(kExperts, 0);
  large_.shared = mlp(1, kSharedExpert);
  for (int v = 0; v < kVersions; ++v) {
    inputs_[static_cast<size_t>(v)] = make_step_input(v, &memory_, stream);
    small_[static_cast<size_t>(v)] = make_host_stack(v);
  }
  must(device::synchronize(stream));
}

prepare::DeviceW4Source StepData::gate_up_source(int version) const {
  return source_of(small_[static_cast<size_t>(version)].gate_up, false);
}
prepare::DeviceW4Source StepData::down_source(int version) const {
  return source_of(small_[static_cast<size_t>(version)].down, true);
}

}  // namespace quadrille::testing
