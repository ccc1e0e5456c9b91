// SPDX-License-Identifier: Apache-2.0
// A 64-bit checksum of bytes against damage (not against an enemy): eight chains side by side, each step of which is a
// bijection of its sum and of its word, so that one changed word always shows. Faster than memory delivers. Used by
// blobs of experts and by prepared files; its definition is part of both formats.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace quadrille {

class Checksum {
 public:
  // Pieces give the sum of their concatenation.
  void add(std::span<const std::byte> bytes) {
    total_ += bytes.size();
    if (carried_ > 0) {
      const size_t taken = std::min(bytes.size(), kBlock - carried_);
      std::memcpy(carry_ + carried_, bytes.data(), taken);
      carried_ += taken;
      bytes = bytes.subspan(taken);
      if (carried_ < kBlock) return;
      add_blocks(carry_, 1);
      carried_ = 0;
    }
    const size_t blocks = bytes.size() / kBlock;
    add_blocks(bytes.data(), blocks);
    const auto rest = bytes.subspan(blocks * kBlock);
    if (!rest.empty()) std::memcpy(carry_, rest.data(), rest.size());
    carried_ = rest.size();
  }

  uint64_t value() const {
    Checksum last = *this;
    if (last.carried_ > 0) {
      std::memset(last.carry_ + last.carried_, 0, kBlock - last.carried_);
      last.add_blocks(last.carry_, 1);
    }
    uint64_t sum = step(kSeed, total_);
    for (const uint64_t lane : last.lanes_) sum = step(sum, lane);
    return sum;
  }

 private:
  static constexpr size_t kLanes = 8, kBlock = kLanes * sizeof(uint64_t);
  static constexpr uint64_t kSeed = 0xcbf29ce484222325ull;

  static uint64_t step(uint64_t sum, uint64_t word) {
    sum = (sum ^ word) * 0x9e3779b97f4a7c15ull;
    return sum ^ (sum >> 29);
  }
  void add_blocks(const std::byte* bytes, size_t blocks) {
    uint64_t lanes[kLanes];
    std::copy(lanes_, lanes_ + kLanes, lanes);
    for (size_t b = 0; b < blocks; ++b, bytes += kBlock) {
      uint64_t words[kLanes];
      std::memcpy(words, bytes, kBlock);
      for (size_t i = 0; i < kLanes; ++i) lanes[i] = step(lanes[i], words[i]);
    }
    std::copy(lanes, lanes + kLanes, lanes_);
  }

  uint64_t lanes_[kLanes] = {kSeed + 1, kSeed + 2, kSeed + 3, kSeed + 4, kSeed + 5, kSeed + 6, kSeed + 7, kSeed + 8};
  std::byte carry_[kBlock] = {};
  size_t carried_ = 0;
  uint64_t total_ = 0;
};

inline uint64_t checksum_of(std::span<const std::byte> bytes) {
  Checksum sum;
  sum.add(bytes);
  return sum.value();
}

}  // namespace quadrille
