// SPDX-License-Identifier: Apache-2.0
// Both preparations of prepare_case.h.
#include "device/prepare_case.h"

#include <cstring>

#include "numerics/bits.h"
#include "numerics/int4.h"
#include "prepare/prepare_hopper.h"

namespace quadrille::testing {
namespace {

using kernels::Numerics;
using kernels::W4Source;
using prepare::DeviceW4Expert;

uint64_t seed_of(int64_t expert, int part, Part what) {
  return matrix_seed(7, expert, part, what);
}

using Addresses = std::vector<const void*>;

// Expert pointers from one address a tensor.
std::vector<DeviceW4Expert> experts_at(const PrepareStack& s, const Addresses& codes, const Addresses& scales,
                                       const Addresses& bias) {
  std::vector<DeviceW4Expert> experts(static_cast<size_t>(s.experts));
  for (int64_t i = 0; i < s.matrices(); ++i) {
    DeviceW4Expert& expert = experts[static_cast<size_t>(i / s.num_parts)];
    expert.codes[i % s.num_parts] = codes[static_cast<size_t>(i)];
    expert.scales[i % s.num_parts] = scales[static_cast<size_t>(i)];
    expert.bias[i % s.num_parts] = bias[static_cast<size_t>(i)];
  }
  return experts;
}

std::vector<DeviceW4Expert> experts_in(const PrepareStack& s, const PrepareImage& image, const uint8_t* base) {
  const auto addresses = [base](const std::vector<int64_t>& offsets) {
    Addresses all;
    for (const int64_t offset : offsets) all.push_back(base + offset);
    return all;
  };
  return experts_at(s, addresses(image.codes), addresses(image.scales), addresses(image.bias));
}

std::vector<DeviceW4Expert> experts_apart(const PrepareStack& s, const PrepareImage& image, W4Source source,
                                          Memory& memory, device::Stream stream) {
  const auto copies = [&](const std::vector<int64_t>& offsets, int64_t bytes, size_t alignment) {
    Addresses all;
    for (const int64_t offset : offsets) {
      auto* there = memory.take<uint8_t>(bytes, alignment, stream);
      must(device::copy_to_device(there, image.at(offset), static_cast<size_t>(bytes), stream));
      all.push_back(there);
    }
    return all;
  };
  return experts_at(s, copies(image.codes, s.code_bytes(source), 4), copies(image.scales, s.part_n * s.groups() * 2, 2),
                    copies(image.bias, s.part_n * 4, 4));
}

}  // namespace

std::string PrepareStack::name() const {
  return fmt::format("{} experts, {} x [{}, {}], group {}, {}", experts, num_parts, part_n, k, group,
                     numerics == Numerics::kVllm ? "vllm" : "exact");
}

PrepareImage::PrepareImage(const PrepareStack& s, W4Source source) {
  const auto take = [this](int64_t size, int64_t alignment, int64_t shift) {
    const int64_t at = layout::ceil_div(static_cast<int64_t>(bytes), alignment) * alignment + shift;
    bytes = static_cast<size_t>(at + size);
    return at;
  };
  for (int64_t i = 0; i < s.matrices(); ++i) {
    const int64_t odd = i / s.num_parts % 2;  // every other expert begins where a multiple of 16 does not
    codes.push_back(take(s.code_bytes(source), 16, 4 * odd));
    bias.push_back(take(s.part_n * 4, 4, 0));
    scales.push_back(take(s.part_n * s.groups() * 2, 4, 2 * odd));
  }
  memory = must(device::PinnedBuffer::allocate(bytes));
  std::memset(memory.get(), kPoison, bytes);
  for (int64_t i = 0; i < s.matrices(); ++i) fill(s, source, i);
}

void PrepareImage::fill(const PrepareStack& s, W4Source source, int64_t index) const {
  const auto place = static_cast<size_t>(index);
  const auto seed = [&](Part part) {
    return seed_of(index / s.num_parts, static_cast<int>(index % s.num_parts), part);
  };
  for (int64_t w = 0; w < s.part_n * s.k / 8; ++w) {
    const uint32_t word = code_word(seed(Part::kCodes), w) ^ (source == W4Source::kUint4b8 ? 0u : 0x88888888u);
    if (source == W4Source::kInt8) {
      numerics::unpack_int4(word, reinterpret_cast<int8_t*>(at(codes[place] + w * 8)));
    } else {
      std::memcpy(at(codes[place] + w * 4), &word, 4);
    }
  }
  for (int64_t g = 0; g < s.part_n * s.groups(); ++g) {
    const uint16_t scale = scale_bits(seed(Part::kScales), g);
    std::memcpy(at(scales[place] + g * 2), &scale, 2);
  }
  for (int64_t r = 0; r < s.part_n; ++r) {
    const float value = small_number(seed(Part::kBias), r);
    std::memcpy(at(bias[place] + r * 4), &value, 4);
  }
}

prepare::PrepareStreams PrepareEngine::streams() const {
  prepare::PrepareStreams s;
  s.prepare = prepare.get();
  s.copy = copy.get();
  s.done = events[0].get();
  s.staging_ready = events[1].get();
  for (int slot = 0; slot < 2; ++slot) {
    s.source_copied[slot] = events[static_cast<size_t>(2 + slot)].get();
    s.staging_free[slot] = events[static_cast<size_t>(4 + slot)].get();
  }
  return s;
}

prepare::DeviceW4Source prepare_source(const PrepareStack& s, W4Source source, std::span<const DeviceW4Expert> experts,
                                       bool on_host) {
  prepare::DeviceW4Source out;
  out.source = source;
  out.numerics = s.numerics;
  out.part_n = s.part_n;
  out.num_parts = s.num_parts;
  out.k = s.k;
  out.group_size = s.group;
  out.experts = experts;
  out.on_host = on_host;
  return out;
}

PreparedBytes prepare_on_cpu(const PrepareStack& s, ThreadPool* pool) {
  const PrepareImage image(s, W4Source::kUint4b8);
  const layout::W4Hopper64 map = s.map();
  const int64_t stride = layout::ceil_div(map.num_bytes(), 128) * 128;
  PreparedBytes out;
  out.weights.assign(static_cast<size_t>(s.experts * stride), kPoison);
  for (int64_t e = 0; e < s.experts; ++e) {
    std::vector<prepare::CanonicalW4> parts;
    for (int64_t i = e * s.num_parts; i < (e + 1) * s.num_parts; ++i) {
      const auto place = static_cast<size_t>(i);
      parts.push_back({.n = s.part_n,
                       .k = s.k,
                       .group_size = s.group,
                       .packed = image.at(image.codes[place]),
                       .codes = nullptr,
                       .scales = image.at(image.scales[place])});
    }
    const auto prepared = must(prepare::prepare_hopper_w4(parts, s.numerics, pool));
    std::copy(prepared.weights.begin(), prepared.weights.end(), out.weights.begin() + e * stride);
    for (const float scale : prepared.channel_scale) out.channel_scale.push_back(numerics::bits_of(scale));
    for (int64_t row = 0; row < map.padded_n(); ++row) {
      const auto place = s.num_parts == 2 ? layout::deinterleave_row(row) : layout::InterleavedRow{0, row};
      const uint64_t seed = seed_of(e, place.part, Part::kBias);
      out.bias.push_back(row < map.n ? numerics::bits_of(small_number(seed, place.row)) : 0u);
    }
  }
  return out;
}

PreparedBytes prepare_on_gpu(const PrepareStack& s, const PrepareImage& image, W4Source source, Place place,
                             Memory& memory, const PrepareEngine& engine) {
  const device::Stream stream = engine.prepare.get();
  std::vector<DeviceW4Expert> experts;
  if (place == Place::kTensors) {
    experts = experts_apart(s, image, source, memory, stream);
  } else if (place == Place::kDevice) {
    auto* there = memory.take<uint8_t>(static_cast<int64_t>(image.bytes), 256, stream);
    must(device::copy_to_device(there, image.memory.get(), image.bytes, stream));
    experts = experts_in(s, image, there);
  } else {
    experts = experts_in(s, image, image.at(0));
  }
  const auto w4 = prepare_source(s, source, experts, place == Place::kHost);
  const prepare::DeviceW4Sizes sizes = must(prepare::device_w4_sizes(w4));
  const auto channels = static_cast<int64_t>(sizes.channel_scale_bytes / 4);
  const auto biases = static_cast<int64_t>(sizes.bias_bytes / 4);
  auto* weights = memory.take<uint8_t>(static_cast<int64_t>(sizes.weight_bytes), 128, stream);
  auto* channel_scale = memory.take<float>(channels, 4, stream);
  auto* bias = memory.take<float>(biases, 4, stream);
  auto* staging = memory.take<uint8_t>(static_cast<int64_t>(sizes.staging_bytes), 256, stream);
  auto* status = memory.take<uint32_t>(1, 4, stream, 0);
  must(prepare::prepare_on_device(*must(kernels::device_table()), w4, {weights, channel_scale, bias}, staging,
                                  engine.streams(), status));
  PreparedBytes out;
  out.weights = on_host<uint8_t>(weights, static_cast<int64_t>(sizes.weight_bytes), stream);
  out.channel_scale = on_host<uint32_t>(channel_scale, channels, stream);
  out.bias = on_host<uint32_t>(bias, biases, stream);
  out.status = on_host<uint32_t>(status, 1, stream)[0];
  out.harmed = memory.harmed(stream);
  return out;
}

}  // namespace quadrille::testing
