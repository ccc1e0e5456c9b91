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
    rewind({});
    if (peak_ > capacity_) {
      block_ = allocate(peak_);
      capacity_ = peak_;
    }
  }

  // What has been taken so far; rewind() forgets everything taken after the mark. ArenaScope below pairs the two.
  struct Mark {
    size_t offset = 0, used = 0, overflow = 0;
  };
  Mark mark() const { return {offset_, used_, overflow_.size()}; }
  void rewind(const Mark& mark) {
    if (used_ > peak_) peak_ = used_;
    offset_ = mark.offset;
    used_ = mark.used;
    while (overflow_.size() > mark.overflow) overflow_.pop_back();
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
  size_t capacity_ = 0, offset_ = 0, used_ = 0, peak_ = 0;
  std::vector<Block> overflow_;
};

// What is taken while the scope lives is free again at its end: the scratch of one kernel call.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace quadrille
