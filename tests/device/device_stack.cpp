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
  uint8_t* codes = nullptr;
  uint16_t* scales = nullptr;
  float* bias = nullptr;
  int64_t slots;

  Canonical(const StackSpec& spec, int64_t num_slots, Memory* memory, device::Stream stream) : slots(num_slots) {
    codes = memory->take<uint8_t>(slots * spec.num_parts * code_bytes(spec), 4, stream);
    scales = memory->take<uint16_t>(slots * spec.num_parts * spec.part_n * spec.groups(), 2, stream);
    if (spec.bias) bias = memory->take<float>(slots * spec.num_parts * spec.part_n, 4, stream);
  }
  uint8_t* codes_of(const StackSpec& spec, int64_t expert, int part) const {
    return codes + (expert % slots * spec.num_parts + part) * code_bytes(spec);
  }
  uint16_t* scales_of(const StackSpec& spec, int64_t expert, int part) const {
    return scales + (expert % slots * spec.num_parts + part) * spec.part_n * spec.groups();
  }
  float* bias_of(const StackSpec& spec, int64_t expert, int part) const {
    return spec.bias ? bias + (expert % slots * spec.num_parts + part) * spec.part_n : nullptr;
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

std::vector<prepare::DeviceW4Expert> experts_of(const StackSpec& spec, const Canonical& canonical) {
  std::vector<prepare::DeviceW4Expert> experts(static_cast<size_t>(spec.experts));
  for (int64_t e = 0; e < spec.experts; ++e) {
    for (int part = 0; part < spec.num_parts; ++part) {
      auto& expert = experts[static_cast<size_t>(e)];
      expert.codes[part] = canonical.codes_of(spec, e, part);
      expert.scales[part] = canonical.scales_of(spec, e, part);
      expert.bias[part] = canonical.bias_of(spec, e, part);
    }
  }
  return experts;
}

prepare::DeviceW4Source source_of(const StackSpec& spec) {
  prepare::DeviceW4Source source;
  source.source = spec.source;
  source.numerics = spec.numerics;
  source.part_n = spec.part_n;
  source.num_parts = spec.num_parts;
  source.k = spec.k;
  source.group_size = spec.group;
  return source;
}

}  // namespace

moe::DeviceLinear make_device_stack(const kernels::DeviceTable& table, const StackSpec& spec, Memory* memory,
                                    device::Stream stream) {
  const int64_t slots = std::clamp<int64_t>(kCanonicalBytes / (spec.num_parts * code_bytes(spec)), 1, spec.experts);
  const std::unique_ptr<Memory> temporary = memory->another();
  const Canonical canonical(spec, slots, temporary.get(), stream);
  const std::vector<prepare::DeviceW4Expert> experts = experts_of(spec, canonical);
  prepare::DeviceW4Source source = source_of(spec);
  source.experts = experts;
  const prepare::DeviceW4Sizes sizes = must(prepare::device_w4_sizes(source));

  const bool vllm = spec.numerics == kernels::Numerics::kVllm;
  prepare::DeviceW4Destination whole;
  whole.weights = memory->take<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), 128, stream);
  if (vllm) whole.channel_scale = memory->take<float>(static_cast<int64_t>(sizes.channel_scale_bytes / 4), 16, stream);
  if (spec.bias) whole.bias = memory->take<float>(static_cast<int64_t>(sizes.bias_bytes / 4), 16, stream);
  auto* status = temporary->take<uint32_t>(1, 4, stream, 0);
  const int64_t padded_n = layout::W4Hopper64{spec.n(), spec.k, spec.group, false}.padded_n();
  const device::OwnedEvent done = must(device::OwnedEvent::create());
  for (int64_t first = 0; first < spec.experts; first += slots) {
    const int64_t count = std::min(slots, spec.experts - first);
    for (int64_t e = first; e < first + count; ++e) canonical.fill(spec, e, stream);
    source.experts = std::span(experts).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    prepare::DeviceW4Destination destination;
    destination.weights = whole.weights + first * sizes.expert_stride;
    if (vllm) destination.channel_scale = whole.channel_scale + first * padded_n;
    if (spec.bias) destination.bias = whole.bias + first * padded_n;
    prepare::PrepareStreams streams;
    streams.prepare = stream;
    streams.done = done.get();
    must(prepare::prepare_on_device(table, source, destination, nullptr, streams, status));
  }
  const uint32_t found = on_host<uint32_t>(status, 1, stream)[0];
  if (found != 0) throw std::runtime_error(fmt::format("preparation left status {:#x}", found));
  const std::string harmed = temporary->harmed(stream);
  if (!harmed.empty()) throw std::runtime_error("preparation wrote around its sources: " + harmed);

  moe::DeviceLinear linear;
  linear.num_experts = spec.experts;
  linear.n = spec.n();
  linear.k = spec.k;
  linear.group_size = spec.group;
  linear.numerics = spec.numerics;
  linear.weights = whole.weights;
  linear.expert_stride = sizes.expert_stride;
  linear.channel_scale = whole.channel_scale;
  linear.bias = whole.bias;
  return linear;
}

}  // namespace quadrille::testing
