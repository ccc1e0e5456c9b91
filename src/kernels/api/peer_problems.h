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

// --- Rows of expert-parallel ranks -----------------------------------------------------------------------------------

inline constexpr int kMaxExpertRanks = 64;

// A token as it travels: `act_bytes` of e4m3 codes (a multiple of 128), its fp32 scale, its top_k ids, up to the pitch.
constexpr int64_t token_record_pitch(int64_t act_bytes, int64_t top_k) {
  return act_bytes + (4 + 4 * top_k + 127) / 128 * 128;
}

// Puts scales and ids behind the codes.
struct PackTokens {
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t act_bytes = 0;
  const float* act_scale = nullptr;  // [num_tokens]
  const int32_t* ids = nullptr;      // [num_tokens, top_k]
  uint8_t* records = nullptr;        // out [num_tokens, pitch], 16-byte aligned: all behind act_bytes
};

// The records of all ranks' tokens, as they are reached here. Tokens are numbered in rank order.
struct RankTokens {
  int32_t num_ranks = 0;
  int64_t top_k = 0;
  int64_t act_bytes = 0;
  int64_t first[kMaxExpertRanks + 1] = {};       // rank r has the tokens first[r] .. first[r + 1] - 1
  const uint8_t* records[kMaxExpertRanks] = {};  // of rank r: [its tokens, pitch], 16-byte aligned
};

// ids[t, j] = the expert here that computes this route, or -1. An id outside of -1..num_experts - 1 counts as -1 and
// sets kStatusBadExpertId.
struct LocalRoutes {
  RankTokens tokens;
  int64_t num_experts = 0;         // of the router
  const int32_t* local = nullptr;  // [num_ranks, num_experts]: for tokens of a rank, the expert here or -1
  int32_t* ids = nullptr;          // out [all tokens, top_k]
  uint32_t* status = nullptr;      // [1]
};

// Copies each token's codes and scale to the slots of its routes; a token without one is not read.
struct PlaceTokens {
  RankTokens tokens;
  const int32_t* slot_of_route = nullptr;  // [all tokens, top_k], -1: not here
  uint8_t* act = nullptr;                  // out [slots, act_bytes], 16-byte aligned
  float* act_scale = nullptr;              // out [slots]
};

// out[i] = rows[slot_of_route[i]] where that is not -1.
struct ReturnRows {
  int64_t num_routes = 0;
  int64_t row_bytes = 0;                   // a multiple of 16
  const int32_t* slot_of_route = nullptr;  // [num_routes]
  const void* rows = nullptr;              // [slots], 16-byte aligned
  void* out = nullptr;                     // [num_routes], 16-byte aligned
};

// DeviceCombine and DeviceCombinePartial over rows that lie with the ranks that computed them.
struct CombineRanks {
  int32_t num_ranks = 0;
  bool partial = false;  // rows, shared and out are fp32, out not rounded; else bf16
  int64_t num_tokens = 0;
  int64_t top_k = 0;
  int64_t width = 0;                       // H, a multiple of 8
  int64_t num_experts = 0;                 // of the router
  const int32_t* ids = nullptr;            // [num_tokens, top_k]
  const int32_t* serving = nullptr;        // [num_experts] the rank that computes it for these tokens
  const void* rows[kMaxExpertRanks] = {};  // of rank r: [.., width], 16-byte aligned
  const int32_t* slots[kMaxExpertRanks] =
      {};                              // of rank r: [num_tokens, top_k] row of a route, -1: nowhere; null: its number
  const float* weight = nullptr;       // [num_tokens, top_k]; null: 1
  const void* shared = nullptr;        // [num_tokens, width] or null
  const float* shared_gate = nullptr;  // [num_tokens] or null: 1
  void* out = nullptr;                 // [num_tokens, width]
};

}  // namespace quadrille::kernels
