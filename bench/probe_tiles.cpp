// SPDX-License-Identifier: Apache-2.0
// The AMX-BF16 peak: independent accumulator tiles of 16 x 16, operands in tile registers or loaded from the first
// cache.
#include <immintrin.h>

#include "bench/probe_loops.h"
#include "kernels/cpu/cpuid.h"

namespace quadrille::bench {
namespace {

// Palette 1, all eight tiles with 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

constexpr double kTileOperations = 2.0 * 16 * 16 * 32;
constexpr int64_t kTileBytes = 1024;
constexpr int kTurnsAShare = 8;  // a turn of these loops does far more than one of the vector loops

__attribute__((target("amx-tile"))) void configure_tiles() {
  const TileConfig config;
  // gcc 12 believes that the instruction reads 8 of the 64 bytes and drops the stores of the others.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

__attribute__((target("amx-tile"))) void finish_tiles() {
  alignas(64) char out[kTileBytes];
  _tile_stored(0, out, 64);
  _tile_release();
  keep(static_cast<uint64_t>(out[0]));
}

// Four sums of two by two operands, all in registers.
__attribute__((target("amx-tile,amx-bf16"))) double four_sums(int64_t turns) {
  alignas(64) static const char kZero[kTileBytes] = {};
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, kZero, 64);
  _tile_loadd(5, kZero, 64);
  _tile_loadd(6, kZero, 64);
  _tile_loadd(7, kZero, 64);
  turns /= kTurnsAShare;
  for (int64_t i = 0; i < turns; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  finish_tiles();
  return static_cast<double>(turns) * 4 * kTileOperations;
}

// Six sums of one pair of operands.
__attribute__((target("amx-tile,amx-bf16"))) double six_sums(int64_t turns) {
  alignas(64) static const char kZero[kTileBytes] = {};
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_loadd(6, kZero, 64);
  _tile_loadd(7, kZero, 64);
  turns /= kTurnsAShare;
  for (int64_t i = 0; i < turns; ++i) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  finish_tiles();
  return static_cast<double>(turns) * 6 * kTileOperations;
}

// Four sums, every operand loaded anew from the first cache, as a GEMM does.
__attribute__((target("amx-tile,amx-bf16"))) double four_sums_loaded(int64_t turns) {
  alignas(64) static const char kZero[4 * kTileBytes] = {};
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  turns /= kTurnsAShare;
  for (int64_t i = 0; i < turns; ++i) {
    _tile_loadd(4, kZero, 64);
    _tile_loadd(6, kZero + 2 * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, kZero + 3 * kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, kZero + kTileBytes, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  finish_tiles();
  return static_cast<double>(turns) * 4 * kTileOperations;
}

constexpr DotLoop kTileLoops[] = {
    {"4 sums", four_sums}, {"6 sums", six_sums}, {"4 sums, operands from memory", four_sums_loaded}};

}  // namespace

bool amx_bf16_runs() {
  const kernels::cpu::CpuFeatures& cpu = kernels::cpu::cpu_features();
  return cpu.amx_tile && cpu.amx_bf16 && cpu.os_saves_tiles && cpu.tile_permission_error == 0;
}

std::span<const DotLoop> tile_loops() {
  return kTileLoops;
}

}  // namespace quadrille::bench
