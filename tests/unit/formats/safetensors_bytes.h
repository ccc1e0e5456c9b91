// SPDX-License-Identifier: Apache-2.0
// Builds the bytes of a safetensors file from a header text, right or wrong.
#pragma once

#include <cstdint>
#include <string>

namespace quadrille::formats::testing {

inline std::string length_bytes(uint64_t length) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>((length >> (8 * i)) & 0xFF);
  return bytes;
}

// 8 bytes of length, the header as it is, `data_bytes` bytes counting up.
inline std::string safetensors_bytes(const std::string& header, size_t data_bytes) {
  std::string bytes = length_bytes(header.size()) + header;
  for (size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

// The two-tensor file of the format's reference page: 8 + 120 + 12 = 140 bytes.
inline const std::string kTwoTensors =
    R"({"w":{"dtype":"I32","shape":[2,1],"data_offsets":[0,8]},"s":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}})"
    "       ";

}  // namespace quadrille::formats::testing
