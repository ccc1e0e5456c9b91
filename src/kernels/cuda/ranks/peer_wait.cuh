// SPDX-License-Identifier: Apache-2.0
// Memory that several GPUs share, as PTX has it: accesses at system scope, and a wait that ends when the host says so
// or when its time is over. Used by the kernels of this folder.
#pragma once

#include <cstdint>

#include "kernels/api/peer_problems.h"

namespace quadrille::kernels::cuda {

// Two words of 8 bytes in one access; each is whole for itself.
struct WordPair {
  uint64_t low, high;
};
__device__ __forceinline__ void store_words(uint64_t* to, WordPair words) {
  asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "l"(words.low),
               "l"(words.high)
               : "memory");
}
__device__ __forceinline__ WordPair load_words(const uint64_t* from) {
  WordPair words;
  asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(words.low), "=l"(words.high)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return words;
}

// A flag behind everything that its writer has written or seen written, and in front of everything its reader reads.
__device__ __forceinline__ void store_release(uint32_t* to, uint32_t value) {
  asm volatile("st.release.sys.global.b32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.b32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(from)) : "memory");
  return value;
}

__device__ __forceinline__ uint64_t time_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

// One thread's wait for a peer. The alarm lies in host memory, microseconds away, so it is looked at rarely.
class PeerPatience {
 public:
  __device__ __forceinline__ explicit PeerPatience(const PeerWait& wait)
      : alarm_(wait.alarm), limit_ns_(wait.limit_ns) {}
  // Asked once a fruitless look at `peer`; true: do not wait any longer.
  __device__ __forceinline__ bool ends(int peer) {
    if (++looks_ % kLooks != 0) return false;
    const uint64_t now = time_ns();
    if (looks_ == kLooks) began_ = now;
    if (alarm_->gave_up != 0) return true;
    const bool told = alarm_->end != 0;
    if (!told && now - began_ <= limit_ns_) return false;
    alarm_->waited_for = static_cast<uint32_t>(peer);
    alarm_->gave_up = told ? kPeerToldToEnd : kPeerOutOfTime;
    return true;
  }

 private:
  static constexpr uint32_t kLooks = 2048;  // a power of two: about half a millisecond
  volatile PeerAlarm* alarm_;
  uint64_t limit_ns_;
  uint32_t looks_ = 0;
  uint64_t began_ = 0;
};

}  // namespace quadrille::kernels::cuda
