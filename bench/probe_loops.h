// SPDX-License-Identifier: Apache-2.0
// The inner loops of the probes, single-threaded, by instruction set; ceilings.cpp runs them on all threads. Each form
// is another way to the same limit: which of them comes nearest depends on the processor.
#pragma once

#include <cstdint>
#include <span>

#include "bench/ceilings.h"

namespace quadrille::bench {

// What loops compute goes here, so that no compiler drops it.
void keep(uint64_t value);

// Reads [p, p + bytes), a multiple of kReadStep at a cache line, prefetching `ahead` bytes before the loads of a step
// (0: not at all).
inline constexpr int64_t kReadStep = 512;
using ReadLoop = void (*)(const char* p, int64_t bytes, int64_t ahead);
ReadLoop read_loop();  // the widest that runs here

// Runs for about `turns` steps of its independent chains; returns the operations done (a product and a sum are two).
struct DotLoop {
  const char* form;
  double (*run)(int64_t turns);
};
std::span<const DotLoop> dot_loops(DotUnit unit);  // empty: the unit does not run here
std::span<const DotLoop> tile_loops();             // of AMX-BF16, for a processor that has it
bool amx_bf16_runs();

// Decodes 4-bit words of the first cache with 8 lanes: shift left, shift right, convert, FMA with a token's value;
// returns the weights decoded.
struct DecodeLoop {
  const char* form;
  double (*run)(int64_t turns);
};
std::span<const DecodeLoop> decode_loops();  // empty: no AVX2 here

}  // namespace quadrille::bench
