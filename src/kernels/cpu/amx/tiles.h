// SPDX-License-Identifier: Apache-2.0
// The tile vocabulary of the AMX unit: eight tiles of up to 16 rows of 64 bytes. A test has a second implementation of
// the same functions in plain C++ (tests/unit/kernels_cpu/emulated_tiles.h). Only amx/isa.cpp includes this one.
#pragma once

#include <cstdint>

#include "core/hostdev.h"

namespace quadrille::kernels::cpu {
namespace {

// Which tile holds what in the product: sums [token tile][weight tile], tokens as the A operand, weights as B.
constexpr int kSum00 = 0, kSum01 = 1, kSum10 = 2, kSum11 = 3;
constexpr int kTokens0 = 4, kTokens1 = 5;
constexpr int kWeights0 = 6, kWeights1 = 7;

constexpr int kTileRows = 16;
constexpr int kTileRowBytes = 64;

// Own assembly, not the intrinsics: those of gcc 12 take tile numbers as literals only, tell the compiler of 8 of the
// 64 bytes of a configuration, and of no byte that a load reads.
struct HardwareTiles {
  // Tokens and sums have `height` rows, 1 <= height <= 16; every tile is 64 bytes wide. Of the calling thread.
  static void configure(int64_t height) {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    };
    static_assert(sizeof(Config) == 64);
    Config config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = kTileRowBytes;
      config.rows[tile] = tile < kWeights0 ? static_cast<uint8_t>(height) : kTileRows;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  // Gives the tiles back: a thread that holds tile data pays for it at every switch.
  static void release() { __asm__ volatile("tilerelease" : : : "memory"); }

  template <int Tile>
  QD_HD static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
  }
  // Rows `stride` bytes apart.
  template <int Tile>
  QD_HD static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
  }
  template <int Tile>
  QD_HD static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
  }
  // Sum = Sum + (e + o): e and o are fma chains from +0 over the even and the odd positions of Tokens [rows][32] and
  // Weights [16 pairs][16][2]; subnormals count as zero.
  template <int Sum, int Tokens, int Weights>
  QD_HD static void dot() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Tokens), "i"(Weights));
  }
};

}  // namespace
}  // namespace quadrille::kernels::cpu
