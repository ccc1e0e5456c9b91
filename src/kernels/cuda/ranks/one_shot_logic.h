// SPDX-License-Identifier: Apache-2.0
// Words, places and epochs of the one-shot reduction and of the barrier, on host and device: what the kernels of
// one_shot.cu exchange, and why nothing is overwritten before it is read. Tests run it with threads of the CPU.
#pragma once

#include <cstdint>

#include "core/hostdev.h"
#include "kernels/api/peer_problems.h"
#include "numerics/bits.h"
#include "numerics/rank_order.h"

namespace quadrille::kernels::cuda {

// A word carries a float and the epoch that it belongs to, and is stored and loaded whole. So a reader needs no flag
// and no fence beside it: either the word is the one that it waits for, value included, or it is not.
//
// An epoch counts the calls in which a chunk took part, on each rank for itself; ranks agree because they make the same
// calls. In every call a block sends all words of its chunk (behind the data: zeros) and waits for all of them, so the
// word that it waits for replaces the one of two epochs ago: they differ, at every wrap-around, too.
//
// Two halves of an inbox, taken in turn, suffice. Rank r stores words of epoch e + 2 into s's inbox, over those of e.
// It does so in a launch behind the one in which it saw every word of e + 1 that s sends. s sent those in a launch
// behind the one in which it read the words of e: launches of one rank's collectives follow each other on their stream,
// a load is done when the launch that branches on its value ends, and no store of a launch is done before it begins. So
// s has read e before r writes e + 2.
QD_HD constexpr uint64_t word_of(float value, uint32_t epoch) {
  return static_cast<uint64_t>(epoch) << 32 | numerics::bits_of(value);
}
QD_HD constexpr bool is_of(uint64_t word, uint32_t epoch) {
  return static_cast<uint32_t>(word >> 32) == epoch;
}
QD_HD constexpr float value_of(uint64_t word) {
  return numerics::float_of(static_cast<uint32_t>(word));
}

QD_HD constexpr uint32_t next_epoch(uint32_t last) {
  return last + 1u;
}

// Flags of the barrier count up as well, but a peer may be one barrier ahead.
QD_HD constexpr bool has_come(uint32_t flag, uint32_t epoch) {
  return static_cast<int32_t>(flag - epoch) >= 0;
}

// A thread's two words of a chunk, in the half of `epoch`, in the part of rank `source`.
inline constexpr int kOneShotThreads = static_cast<int>(kOneShotChunk / 2);
QD_HD constexpr int64_t word_place(uint32_t epoch, int num_ranks, int source, int64_t chunk, int thread) {
  const int64_t part = static_cast<int64_t>(epoch & 1u) * num_ranks + source;
  return (part * kOneShotChunks + chunk) * kOneShotChunk + 2 * thread;
}
QD_HD constexpr int64_t chunks_of(int64_t count) {
  return (count + kOneShotChunk - 1) / kOneShotChunk;
}

}  // namespace quadrille::kernels::cuda
