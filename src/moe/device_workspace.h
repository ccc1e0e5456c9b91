// SPDX-License-Identifier: Apache-2.0
// Where each intermediate of a device layer lies in the caller's workspace. Parts begin at multiples of 256 bytes; two
// share memory only where the later one begins after the last reader of the earlier one, in the order of one stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/order.h"
#include "moe/device_layer.h"

namespace quadrille::moe {

// The smallest token tile a backend may have: tile lists are sized for it.
inline constexpr int64_t kMinTileTokens = 8;
// Pitch of quantised rows: a multiple of this.
inline constexpr int64_t kActAlign = 128;
constexpr int64_t act_pitch(int64_t k) {
  return (k + kActAlign - 1) / kActAlign * kActAlign;
}

struct Part {
  size_t offset = 0;
  size_t bytes = 0;
};

// One MLP over `rows` rows. `rows` (GEMM2) lies over act, act_scale and hidden, which GEMM2 does not read.
struct MlpParts {
  Part act;           // [rows, act_pitch(hidden)] e4m3
  Part act_scale;     // [rows] fp32
  Part hidden;        // [rows, width] bf16
  Part second;        // [rows, act_pitch(down.k)] e4m3
  Part second_scale;  // [rows] fp32
  Part rows;          // [rows, hidden] bf16; fp32 with tensor-parallel ranks
  Part few_hidden;    // of few tokens [rows, width] bf16: hidden where GEMM2 does read it
};

// A tile list for each of the two products; one is used where both have tiles of equal size.
struct TileParts {
  Part tiles[2], count[2];
};

struct LayerParts {
  Part status;                                          // a word where the caller gives none
  Part ids, weights;                                    // of the router
  Part offsets, route_of_slot, slot_of_route, scratch;  // of the plan
  TileParts lists;
  MlpParts experts;
  MlpParts shared;
  Part shared_gate;  // [tokens] fp32
  // With tensor-parallel ranks:
  Part absmax;   // [routes], then [tokens] of the shared expert: one exchange
  Part partial;  // [tokens, hidden] fp32: what the ranks add
  size_t total = 0;
};
LayerParts plan_layer_parts(const DeviceMoeLayer& layer, int64_t num_tokens);

struct MaskedParts {
  Part status;
  TileParts lists;
  MlpParts experts;  // without act and rows, which are the caller's
  size_t total = 0;
};
MaskedParts plan_masked_parts(const DeviceMlp& mlp, int64_t max_m);

struct LinearParts {
  Part act, act_scale;
  Part absmax, partial;  // with tensor-parallel ranks: [rows], [rows, n] fp32
  size_t total = 0;
};
LinearParts plan_linear_parts(const DeviceLinear& linear, int64_t num_rows, const DeviceRanks& ranks = {});

// The caller's memory, part by part.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<uint8_t*>(memory)) {}
  // The part begins to live on `stream`: what it held before is nobody's any more.
  template <typename T>
  T* open(const Part& part, device::Stream stream) const {
    device::fresh_buffer(memory_ + part.offset, part.bytes, stream);
    return at<T>(part);
  }
  // A part that was opened before.
  template <typename T>
  T* at(const Part& part) const {
    return reinterpret_cast<T*>(memory_ + part.offset);
  }

 private:
  uint8_t* memory_;
};

}  // namespace quadrille::moe
