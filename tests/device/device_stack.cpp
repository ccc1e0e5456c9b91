// SPDX-License-Identifier: Apache-2.0
// Fills canonical weights for a few experts at a time and prepares them.
#include "device/device_stack.h"

#include <algorithm>

#include "device/device_memory.h"
#include "device/fill.h"
#include "device/random_data.h"
#include "prepare/device_prepare.h"

namespace quadrille::testing {
namespace {

constexpr int64_t kCanonicalBytes = int64_t{1} << 30;  // of canonical codes at a time

int64_t code_bytes(const StackSpec& spec) {
  const int64_t count = spec.part_n * spec.k;
  return spec.source == kernels::W4Source::kInt8 ? count : count / 2;
}

// Room for the canonical form of `slots` experts, reused chunk by chunk.
struct Canonical {
  device::Buffer codes, scales, bias;
  int64_t slots;

  Canonical(const StackSpec& spec, int64_t num_slots, device::Stream stream) : slots(num_slots) {
    codes = poisoned<uint8_t>(slots * spec.num_parts * code_bytes(spec), stream);
    scales = poisoned<uint16_t>(slots * spec.num_parts * spec.part_n * spec.groups(), stream);
    if (spec.bias) bias = poisoned<float>(slots * spec.num_parts * spec.part_n, stream);
  }
  uint8_t* codes_of(const StackSpec& spec, int64_t expert, int part) const {
    return codes.as<uint8_t>() + (expert % slots * spec.num_parts + part) * code_bytes(spec);
  }
  uint16_t* scales_of(const StackSpec& spec, int64_t expert, int part) const {
    return scales.as<uint16_t>() + (expert % slots * spec.num_parts + part) * spec.part_n * spec.groups();
  }
  float* bias_of(const StackSpec& spec, int64_t expert, int part) const {
    return spec.bias ? bias.as<float>() + (expert % slots * spec.num_parts + part) * spec.part_n : nullptr;
  }
  void fill(const StackSpec& spec, int64_t expert, device::Stream stream) const {
    for (int part = 0; part < spec.num_parts; ++part) {
      const auto seed = [&](Part p) {
        return matrix_seed(spec.seed, spec.first_expert + expert, spec.matrix + part, p);
      };
      fill_codes(codes_of(spec, expert, part), spec.part_n * spec.k, spec.source, seed(Part::kCodes), stream);
      fill_scales(scales_of(spec, expert, part), spec.part_n * spec.groups(), seed(Part::kScales), stream);
      if (spec.bias) fill_small_numbers(bias_of(spec, expert, part), spec.part_n, seed(Part::kBias), stream);
    }
  }
};

}  // namespace

DeviceStack make_device_stack(const kernels::DeviceTable& table, const StackSpec& spec, device::Stream stream) {
  const int64_t slots = std::clamp<int64_t>(kCanonicalBytes / (spec.num_parts * code_bytes(spec)), 1, spec.experts);
  const Canonical canonical(spec, slots, stream);
  std::vector<prepare::DeviceW4Expert> experts(static_cast<size_t>(spec.experts));
  for (int64_t e = 0; e < spec.experts; ++e) {
    for (int part = 0; part < spec.num_parts; ++part) {
      auto& expert = experts[static_cast<size_t>(e)];
      expert.codes[part] = canonical.codes_of(spec, e, part);
      expert.scales[part] = canonical.scales_of(spec, e, part);
      expert.bias[part] = canonical.bias_of(spec, e, part);
    }
  }
  prepare::DeviceW4Source source;
  source.source = spec.source;
  source.numerics = spec.numerics;
  source.part_n = spec.part_n;
  source.num_parts = spec.num_parts;
  source.k = spec.k;
  source.group_size = spec.group;
  source.experts = experts;
  const prepare::DeviceW4Sizes sizes = must(prepare::device_w4_sizes(source));

  DeviceStack stack;
  stack.weights = poisoned<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), stream);
  stack.channel_scale = poisoned<uint8_t>(static_cast<int64_t>(sizes.channel_scale_bytes), stream);
  stack.bias = poisoned<uint8_t>(static_cast<int64_t>(sizes.bias_bytes), stream);
  stack.status = poisoned<uint32_t>(1, stream, 0);
  const int64_t padded_n = layout::W4Hopper64{spec.n(), spec.k, spec.group, false}.padded_n();
  const bool vllm = spec.numerics == kernels::Numerics::kVllm;
  const device::OwnedEvent done = must(device::OwnedEvent::create());
  for (int64_t first = 0; first < spec.experts; first += slots) {
    const int64_t count = std::min(slots, spec.experts - first);
    for (int64_t e = first; e < first + count; ++e) canonical.fill(spec, e, stream);
    source.experts = std::span(experts).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    prepare::DeviceW4Destination destination;
    destination.weights = stack.weights.as<uint8_t>() + first * sizes.expert_stride;
    if (vllm) destination.channel_scale = stack.channel_scale.as<float>() + first * padded_n;
    if (spec.bias) destination.bias = stack.bias.as<float>() + first * padded_n;
    prepare::PrepareStreams streams;
    streams.prepare = stream;
    streams.done = done.get();
    must(prepare::prepare_on_device(table, source, destination, nullptr, streams, stack.status.as<uint32_t>()));
  }
  const uint32_t status = on_host<uint32_t>(stack.status.get(), 1, stream)[0];
  if (status != 0) throw std::runtime_error(fmt::format("preparation left status {:#x}", status));

  stack.linear.num_experts = spec.experts;
  stack.linear.n = spec.n();
  stack.linear.k = spec.k;
  stack.linear.group_size = spec.group;
  stack.linear.numerics = spec.numerics;
  stack.linear.weights = stack.weights.as<uint8_t>();
  stack.linear.expert_stride = sizes.expert_stride;
  stack.linear.channel_scale = vllm ? stack.channel_scale.as<float>() : nullptr;
  stack.linear.bias = spec.bias ? stack.bias.as<float>() : nullptr;
  return stack;
}

}  // namespace quadrille::testing
