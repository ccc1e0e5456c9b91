// SPDX-License-Identifier: Apache-2.0
// The tile vocabulary of the amx unit (src/kernels/cpu/amx/tiles.h) in plain C++, with what the hardware would refuse
// or flush counted instead: the index arithmetic and the bits of the product are tested on machines without AMX.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/amx/tiles.h"

namespace quadrille::kernels::cpu {
namespace {

// Of one thread, like the hardware's.
struct EmulatedState {
  int64_t height = 0;  // 0: not configured
  alignas(64) unsigned char tiles[8][kTileRows][kTileRowBytes];
};
thread_local EmulatedState g_tiles;

uint64_t g_emulated_dots = 0;
uint64_t g_misuses = 0;     // a tile used without a configuration, a height out of range
uint64_t g_subnormals = 0;  // operands or results that the hardware would take as zero

void count_one(uint64_t& counter) {
  __atomic_fetch_add(&counter, 1, __ATOMIC_RELAXED);
}

struct EmulatedTiles {
  static void configure(int64_t height) {
    if (g_tiles.height != 0 || height < 1 || height > kTileRows) count_one(g_misuses);
    g_tiles.height = height;
    std::memset(g_tiles.tiles, 0, sizeof(g_tiles.tiles));
  }
  static void release() { g_tiles.height = 0; }

  static int64_t rows(int tile) {
    if (g_tiles.height == 0) count_one(g_misuses);
    return tile < kWeights0 ? g_tiles.height : kTileRows;
  }

  template <int Tile>
  static void zero() {
    (void)rows(Tile);
    std::memset(g_tiles.tiles[Tile], 0, sizeof(g_tiles.tiles[Tile]));
  }
  template <int Tile>
  static void load(const void* from, int64_t stride) {
    zero<Tile>();  // rows above the height read as zero
    for (int64_t r = 0; r < rows(Tile); ++r) {
      std::memcpy(g_tiles.tiles[Tile][r], static_cast<const char*>(from) + r * stride, kTileRowBytes);
    }
  }
  template <int Tile>
  static void store(void* to, int64_t stride) {
    for (int64_t r = 0; r < rows(Tile); ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, g_tiles.tiles[Tile][r], kTileRowBytes);
    }
  }

  // Zero for a subnormal, which is counted.
  static float flushed(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000u) != 0 || (bits & 0x7fffffffu) == 0) return x;
    count_one(g_subnormals);
    bits &= 0x80000000u;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  static float widened(const unsigned char* bf16) {
    uint16_t half;
    std::memcpy(&half, bf16, 2);
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
  }

  template <int Sum, int Tokens, int Weights>
  static void dot() {
    count_one(g_emulated_dots);
    for (int64_t m = 0; m < rows(Sum); ++m) {
      float chain[2][16] = {};
      for (int pair = 0; pair < 16; ++pair) {
        for (int odd = 0; odd < 2; ++odd) {
          const float token = widened(g_tiles.tiles[Tokens][m] + pair * 4 + odd * 2);
          for (int n = 0; n < 16; ++n) {
            const float weight = widened(g_tiles.tiles[Weights][pair] + n * 4 + odd * 2);
            chain[odd][n] = flushed(__builtin_fmaf(token, weight, chain[odd][n]));
          }
        }
      }
      float sum[16];
      std::memcpy(sum, g_tiles.tiles[Sum][m], sizeof(sum));
      for (int n = 0; n < 16; ++n) sum[n] = flushed(flushed(sum[n]) + flushed(chain[0][n] + chain[1][n]));
      std::memcpy(g_tiles.tiles[Sum][m], sum, sizeof(sum));
    }
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
