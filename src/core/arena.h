// SPDX-License-Identifier: Apache-2.0
// Scratch memory of one step: take() bumps, reset() forgets, and after the first steps nothing is allocated any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace quadrille {

class Arena {
 public:
  static constexpr size_t kAlignment = 64;

  // `count` values of T, uninitialised, aligned to a cache line; valid until reset().
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  void* take_bytes(size_t bytes) {
    const size_t size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    used_ += size;
    if (offset_ + size <= capacity_) {
      void* result = block_.get() + offset_;
      offset_ += size;
      return result;
    }
    overflow_.push_back(allocate(size));
    return overflow_.back().get();
  }

  // Everything taken is free again. A step that overflowed the block makes the next block large enough for it.
  void reset() {
    if (used_ > capacity_) {
      overflow_.clear();
      block_ = allocate(used_);
      capacity_ = used_;
    }
    used_ = offset_ = 0;
  }

  size_t capacity_bytes() const { return capacity_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<std::byte, Free>;
  static Block allocate(size_t size) {
    void* p = std::aligned_alloc(kAlignment, size == 0 ? kAlignment : size);
    if (p == nullptr) throw std::bad_alloc();
    return Block(static_cast<std::byte*>(p));
  }

  Block block_;
  size_t capacity_ = 0, offset_ = 0, used_ = 0;
  std::vector<Block> overflow_;
};

}  // namespace quadrille
