// SPDX-License-Identifier: Apache-2.0
#include "bench/device/device_data.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "numerics/bf16.h"
#include "numerics/fp8_e4m3.h"

namespace quadrille::bench {
namespace {

constexpr int64_t kDistinctRecords = 4099;  // prime: neighbours in a row block never line up

std::vector<uint8_t> random_records(const layout::W4Hopper64& map) {
  std::mt19937 random(7);
  std::lognormal_distribution<float> scale(-5.0f, 0.5f);
  std::vector<uint8_t> bytes(static_cast<size_t>(kDistinctRecords * map.record_bytes()));
  for (int64_t r = 0; r < kDistinctRecords; ++r) {
    uint8_t* record = bytes.data() + r * map.record_bytes();
    for (int i = 0; i < layout::kRecordCodeBytes; i += 4) {
      const uint32_t word = random();
      std::memcpy(record + i, &word, 4);
    }
    for (int i = layout::kRecordCodeBytes; i < map.record_bytes(); i += map.vllm ? 1 : 2) {
      if (map.vllm) {
        record[i] = static_cast<uint8_t>(0x20 + random() % 0x30);
        continue;
      }
      const uint16_t s = numerics::bf16_from_f32(scale(random));
      std::memcpy(record + i, &s, 2);
    }
  }
  return bytes;
}

template <typename T, typename Make>
device::Buffer repeated(int64_t count, device::Stream stream, Make&& make) {
  constexpr int64_t kDistinct = 1 << 20;
  std::vector<T> host(static_cast<size_t>(std::min(count, kDistinct + 3)));
  for (T& value : host) value = make();
  auto buffer = must(device::Buffer::allocate(static_cast<size_t>(std::max<int64_t>(count, 64)) * sizeof(T), stream));
  for (int64_t at = 0; at < count; at += static_cast<int64_t>(host.size())) {
    const int64_t n = std::min<int64_t>(count - at, static_cast<int64_t>(host.size()));
    must(device::copy_to_device(buffer.as<T>() + at, host.data(), static_cast<size_t>(n) * sizeof(T), stream));
  }
  must(device::synchronize(stream));
  return buffer;
}

}  // namespace

int64_t expert_stride(const layout::W4Hopper64& map) {
  return layout::ceil_div(map.num_bytes(), 128) * 128;
}

device::Buffer random_weights(const layout::W4Hopper64& map, int64_t experts, device::Stream stream) {
  const std::vector<uint8_t> records = random_records(map);
  const int64_t size = experts * expert_stride(map);
  auto buffer = must(device::Buffer::allocate(static_cast<size_t>(size), stream));
  const auto source = upload(records, stream);
  for (int64_t e = 0; e < experts; ++e) {
    // Whole records from the expert's first byte on, so that scales lie where the kernel looks for them.
    uint8_t* expert = buffer.as<uint8_t>() + e * expert_stride(map);
    for (int64_t at = 0; at < map.num_bytes();) {
      const int64_t n = std::min<int64_t>(map.num_bytes() - at, static_cast<int64_t>(records.size()));
      must(device::copy_on_device(expert + at, source.get(), static_cast<size_t>(n), stream));
      at += n;
    }
  }
  must(device::synchronize(stream));
  return buffer;
}

device::Buffer random_floats(int64_t count, float low, float high, device::Stream stream) {
  std::mt19937 random(11);
  std::uniform_real_distribution<float> value(low, high);
  return repeated<float>(count, stream, [&] { return value(random); });
}

device::Buffer random_codes(int64_t rows, int64_t k, int64_t pitch, device::Stream stream) {
  std::mt19937 random(13);
  std::normal_distribution<float> value(0.0f, 110.0f);  // absmax of a long row lands near 448
  if (pitch == k) return repeated<uint8_t>(rows * k, stream, [&] { return numerics::e4m3_from_f32(value(random)); });
  std::vector<uint8_t> host(static_cast<size_t>(rows * pitch));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < k; ++i) host[r * pitch + i] = numerics::e4m3_from_f32(value(random));
  }
  return upload(host, stream);
}

device::Buffer random_bf16(int64_t count, device::Stream stream) {
  std::mt19937 random(17);
  std::normal_distribution<float> value;
  return repeated<uint16_t>(count, stream, [&] { return numerics::bf16_from_f32(value(random)); });
}

std::vector<int32_t> random_routes(int64_t tokens, int64_t top_k, int64_t experts, std::mt19937& random) {
  return zipf_routes(tokens, top_k, experts, 0.0, random);
}

std::vector<int32_t> zipf_routes(int64_t tokens, int64_t top_k, int64_t experts, double exponent,
                                 std::mt19937& random) {
  std::vector<int32_t> ids;
  std::vector<std::pair<double, int32_t>> keys(static_cast<size_t>(experts));
  std::exponential_distribution<double> draw;
  for (int64_t t = 0; t < tokens; ++t) {
    // The k smallest of Exp(1) / weight are a draw without replacement by weight.
    for (int64_t e = 0; e < experts; ++e)
      keys[e] = {draw(random) * std::pow(e + 1.0, exponent), static_cast<int32_t>(e)};
    std::partial_sort(keys.begin(), keys.begin() + top_k, keys.end());
    for (int64_t j = 0; j < top_k; ++j) ids.push_back(keys[j].second);
  }
  return ids;
}

std::vector<kernels::TokenTile> cut_tiles(const std::vector<int64_t>& rows, int32_t tokens) {
  std::vector<kernels::TokenTile> tiles;
  int32_t first = 0;
  for (size_t e = 0; e < rows.size(); ++e) {
    const auto first_tile = static_cast<int32_t>(tiles.size());
    const auto count = static_cast<int32_t>(layout::ceil_div(rows[e], tokens));
    for (int32_t i = 0; i < count; ++i) {
      const int32_t left = static_cast<int32_t>(rows[e]) - i * tokens;
      tiles.push_back({static_cast<int32_t>(e), first + i * tokens, std::min(left, tokens), first_tile, count, {}});
    }
    first += static_cast<int32_t>(rows[e]);
  }
  return tiles;
}

}  // namespace quadrille::bench
