// SPDX-License-Identifier: Apache-2.0
// What kernels that speak with other GPUs of the host are asked for. Every rank calls the same functions in the same
// order with the same sizes; pointers to another rank's memory are its memory as it is mapped here. Nothing is counted
// by the host: epochs lie in device memory and advance by themselves, so that a captured call can be replayed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quadrille::kernels {

inline constexpr int kMaxPeers = 16;

// Page-locked host memory of a rank, zero at the beginning. A kernel that waits for a peer looks at `end` now and then;
// one that gives up leaves its result undefined and says so here, and every later one gives up, too.
struct PeerAlarm {
  uint32_t end;         // set by the host: do not wait any longer
  uint32_t gave_up;     // PeerGaveUp
  uint32_t waited_for;  // rank
};
enum PeerGaveUp : uint32_t { kPeerToldToEnd = 1, kPeerOutOfTime = 2 };
struct PeerWait {
  PeerAlarm* alarm = nullptr;
  uint64_t limit_ns = 0;  // of one wait: the last resort where nobody sets the alarm
};

// --- One-shot reduction ----------------------------------------------------------------------------------------------

inline constexpr int64_t kOneShotChunk = 512;   // floats that one block exchanges and reduces
inline constexpr int64_t kOneShotChunks = 128;  // most blocks
inline constexpr int64_t kOneShotFloats = kOneShotChunk * kOneShotChunks;  // 256 KiB
// A rank's inbox: [2][num_ranks][chunks][chunk] words of 8 bytes, a float and the epoch that it belongs to; zero at the
// beginning.
constexpr size_t one_shot_inbox_bytes(int num_ranks) {
  return size_t{2} * static_cast<size_t>(num_ranks * kOneShotFloats) * sizeof(uint64_t);
}

// data[i] = the ranks' data[i], reduced in rank order (numerics/rank_order.h), NaN canonical; in place, on every rank.
struct OneShotReduce {
  int32_t num_ranks = 0;  // 2..kMaxPeers
  int32_t rank = 0;
  bool takes_max = false;           // the largest instead of the sum
  int64_t count = 0;                // 1..kOneShotFloats
  float* data = nullptr;            // [count]
  uint64_t* inbox[kMaxPeers] = {};  // of every rank, 16-byte aligned
  uint32_t* epochs = nullptr;       // [kOneShotChunks] of this rank, zero at the beginning
  PeerWait wait;
};

// --- Barrier ---------------------------------------------------------------------------------------------------------

// What ranks wrote before it, to any rank's memory, can be read by all ranks' kernels behind it.
struct PeerBarrier {
  int32_t num_ranks = 0;
  int32_t rank = 0;
  uint32_t* flags[kMaxPeers] = {};  // of every rank: [num_ranks], zero at the beginning
  uint32_t* epoch = nullptr;        // [1] of this rank, zero at the beginning
  PeerWait wait;
};

}  // namespace quadrille::kernels
