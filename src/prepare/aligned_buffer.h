// SPDX-License-Identifier: Apache-2.0
// Memory of prepared weights: aligned to a cache line, large ones to a huge page; movable, zero-filled on request. Or
// somebody else's memory, read where it lies: a mapped file, a part of a larger buffer.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace quadrille::prepare {

template <typename T>
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // `count` values, uninitialised.
  explicit AlignedBuffer(int64_t count) : size_(count), data_(allocate(count)) {}
  // `count` values that lie at `data`, which its owner keeps until this buffer is gone. Not to be written through.
  static AlignedBuffer borrow(const T* data, int64_t count) {
    AlignedBuffer buffer;
    buffer.size_ = count;
    buffer.data_ = std::unique_ptr<T, Free>(const_cast<T*>(data), Free{true});
    return buffer;
  }
  bool is_borrowed() const { return data_.get_deleter().is_borrowed; }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  int64_t size_bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  void fill_zero() {
    if (size_ > 0) std::memset(data_.get(), 0, static_cast<size_t>(size_bytes()));
  }

 private:
  static constexpr size_t kCacheLine = 64;
  static constexpr size_t kHugePage = size_t{2} << 20;
  struct Free {
    bool is_borrowed = false;
    void operator()(T* p) const {
      if (!is_borrowed) std::free(p);
    }
  };
  static std::unique_ptr<T, Free> allocate(int64_t count) {
    if (count == 0) return {};
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : kCacheLine;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    void* p = std::aligned_alloc(alignment, rounded);
    if (p == nullptr) throw std::bad_alloc();
    // Advice only: a kernel without transparent huge pages runs on as it is.
    if (alignment == kHugePage) (void)madvise(p, rounded, MADV_HUGEPAGE);
    return std::unique_ptr<T, Free>(static_cast<T*>(p));
  }

  int64_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

}  // namespace quadrille::prepare
