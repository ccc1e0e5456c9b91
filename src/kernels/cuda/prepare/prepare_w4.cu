// SPDX-License-Identifier: Apache-2.0
// Checkpoint matrices of up to 64 experts -> records of the Hopper layout in one launch: codes recoded, scales split
// and placed, gate and up interleaved in the address computation. Called through the device table by src/prepare.
#include <algorithm>

#include "core/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prepare/source.cuh"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "numerics/hopper_codes.h"

namespace quadrille::kernels::cuda {
namespace {

using layout::kRecordRows;
using layout::W4Hopper64;

constexpr int kMaxGroups = 4;  // of a record
constexpr float kLargestF32 = 0x1.fffffep127f;
static_assert(sizeof(DevicePrepareW4) <= 4096);  // what a launch carries on every driver

struct __align__(16) Tile {
  uint32_t codes[kRecordRows * kChunkPitch];                     // two's complement nibbles, [row][k / 8]
  uint8_t scales[kChunkRecords * kMaxGroups * kRecordRows * 2];  // as the records have them
  float channel[kRecordRows];                                    // vllm: before the factor 8
};

__device__ __forceinline__ bool is_finite_bf16(uint16_t scale) {
  return (scale & 0x7f80u) != 0x7f80u;
}

// The absmax of a row whose own scales reach `own`: that of the unsharded row where it is given (one part, rows in
// their order). `bad`: it cannot be the absmax of these scales.
__device__ __forceinline__ float channel_absmax(const RowBlock& block, const float* whole_rows, int r, float own,
                                                bool& bad) {
  const int64_t row = block.first_row + r;
  if (whole_rows == nullptr || row >= block.map.n) return own;
  const float whole = __ldg(whole_rows + row);
  bad = bad || !(whole >= own && whole <= kLargestF32);
  return whole;
}

// vllm: the channel scales of 64 rows, four threads a row; written out by the first of the blocks that share the rows.
__device__ __forceinline__ void load_channel_scales(const RowBlock& block, const float* whole_rows, float* out,
                                                    Tile& tile, bool& bad) {
  const int r = static_cast<int>(threadIdx.x) / 4;
  const int64_t groups = layout::num_groups(block.map.k, block.map.group_size);
  const uint16_t* scales = block.row<uint16_t>(block.scales, r, groups);
  float absmax = 0.0f;
  for (int64_t g = static_cast<int>(threadIdx.x) % 4; scales != nullptr && g < groups; g += 4) {
    absmax = numerics::absmax_step(absmax, numerics::bf16_to_f32(__ldg(scales + g)));
  }
  absmax = numerics::absmax_step(absmax, __shfl_xor_sync(0xffffffffu, absmax, 1));
  absmax = numerics::absmax_step(absmax, __shfl_xor_sync(0xffffffffu, absmax, 2));
  if (threadIdx.x % 4 != 0) return;
  absmax = channel_absmax(block, whole_rows, r, absmax, bad);
  const float channel = numerics::channel_scale_of_absmax(absmax);
  tile.channel[r] = channel;
  if (out != nullptr) out[r] = scales != nullptr ? numerics::channel_scale8(channel) : 0.0f;
}

// The scales of a chunk's records, in their order: neighbouring threads read neighbouring groups of a row.
template <bool kVllm>
__device__ __forceinline__ void load_scales(const RowBlock& block, int64_t first_record, Tile& tile, bool& bad) {
  const W4Hopper64& map = block.map;
  const int in_record = map.groups_per_record();
  const int shift = in_record == 4 ? 2 : in_record == 2 ? 1 : 0;
  const int per_row_shift = shift + 2;
  static_assert(kChunkRecords == 4);
  const int64_t groups = layout::num_groups(map.k, map.group_size);
  for (int i = static_cast<int>(threadIdx.x); i < kRecordRows << per_row_shift; i += kPrepareThreads) {
    const int r = i >> per_row_shift;
    const int record = (i >> shift) % kChunkRecords;
    const int group = i & (in_record - 1);
    const int64_t source = map.source_group(first_record + record, group);
    const uint16_t* scales = block.row<uint16_t>(block.scales, r, groups);
    const bool inside = scales != nullptr && source < groups;
    const uint16_t scale = inside ? __ldg(scales + source) : layout::kPadScaleBf16;
    bad = bad || !is_finite_bf16(scale);
    const int place = record * in_record * kRecordRows + W4Hopper64::scale_index(r, group);
    if (kVllm) {
      const uint8_t code =
          numerics::group_scale8_code(numerics::group_scale_code(numerics::bf16_to_f32(scale), tile.channel[r]));
      tile.scales[place] = inside ? code : uint8_t{0};
    } else {
      reinterpret_cast<uint16_t*>(tile.scales)[place] = scale;
    }
  }
}

template <bool kInt8>
__device__ __forceinline__ void load_codes(const RowBlock& block, int64_t first_record, bool aligned, Tile& tile,
                                           bool& bad) {
  const int64_t first_word = first_record * (layout::kRecordK / 8);
  if (kInt8) {
    if (aligned) {
      load_bytes16(block, first_word, tile.codes, bad);
    } else {
      load_bytes4(block, first_word, tile.codes, bad);
    }
  } else if (aligned) {
    load_packed16(block, first_word, tile.codes);
  } else {
    load_packed4(block, first_word, tile.codes);
  }
}

// Thread i writes piece i of every record: 256 pieces side by side, 4 KB.
template <bool kVllm>
__device__ __forceinline__ void write_codes(const W4Hopper64& map, const Tile& tile, int num_records, uint8_t* out) {
  static_assert(kPrepareThreads * 16 == layout::kRecordCodeBytes);
  const int piece = static_cast<int>(threadIdx.x);
  const int column = W4Hopper64::piece_column(piece);
  const int shift = column % 8 * 4;
  const uint32_t* row0 = tile.codes + W4Hopper64::piece_row(piece) * kChunkPitch + column / 8;
  const uint32_t* row8 = row0 + 8 * kChunkPitch;
  for (int record = 0; record < num_records; ++record) {
    const auto word = [&](int j) {
      const int at = record * (layout::kRecordK / 8) + j * 2;
      const uint32_t x0 = row0[at] >> shift, x1 = row8[at] >> shift;
      return kVllm ? numerics::pack_vllm_int4(x0, x1) : numerics::pack_exact_int4(x0, x1);
    };
    *reinterpret_cast<uint4*>(out + static_cast<int64_t>(record) * map.record_bytes() + piece * 16) =
        uint4{word(0), word(1), word(2), word(3)};
  }
}

__device__ __forceinline__ void write_scales(const W4Hopper64& map, const Tile& tile, int num_records, uint8_t* out) {
  const int pieces = map.scale_bytes() / 16;  // of a record: 4, 8, 16 or 32
  const int shift = 31 - __clz(pieces);
  for (int i = static_cast<int>(threadIdx.x); i < num_records << shift; i += kPrepareThreads) {
    const int64_t at = static_cast<int64_t>(i >> shift) * map.record_bytes() + layout::kRecordCodeBytes;
    *reinterpret_cast<uint4*>(out + at + (i & (pieces - 1)) * 16) = reinterpret_cast<const uint4*>(tile.scales)[i];
  }
}

__device__ __forceinline__ void write_bias(const RowBlock& block, const void* const (&bias)[2], float* out) {
  const int r = static_cast<int>(threadIdx.x);
  if (r >= kRecordRows) return;
  const float* source = block.row<float>(bias, r, 1);
  out[r] = source != nullptr ? __ldg(source) : 0.0f;
}

// Block (x, y, z): row block x of expert z, chunks of 512 k [y * chunks_per_block, + chunks_per_block).
template <bool kInt8, bool kVllm>
__global__ void __launch_bounds__(kPrepareThreads, 4)
    prepare_w4_kernel(const __grid_constant__ DevicePrepareW4 p, int64_t chunks_per_block) {
  __shared__ Tile tile;
  const int expert = static_cast<int>(blockIdx.z);
  const int64_t row_block = blockIdx.x;
  const RowBlock block{.map = {p.part_n * p.num_parts, p.k, p.group_size, kVllm},
                       .codes = {p.codes[expert][0], p.codes[expert][1]},
                       .scales = {p.scales[expert][0], p.scales[expert][1]},
                       .first_row = row_block * kRecordRows,
                       .num_parts = p.num_parts,
                       .flip = p.source == W4Source::kUint4b8 ? 0x88888888u : 0u};
  const bool is_first = blockIdx.y == 0;
  const int64_t out_row = expert * block.map.padded_n() + block.first_row;
  if (p.prepared_bias != nullptr && is_first) {
    const void* bias[2] = {p.bias[expert][0], p.bias[expert][1]};
    write_bias(block, bias, p.prepared_bias + out_row);
  }
  bool bad_scale = false, bad_code = false;
  if (kVllm) {
    const auto* whole_rows = static_cast<const float*>(p.row_absmax[expert]);
    load_channel_scales(block, whole_rows, is_first ? p.channel_scale + out_row : nullptr, tile, bad_scale);
    __syncthreads();  // tile.channel: written above, read by load_scales
  }
  const bool aligned = rows_are_aligned(block, kInt8 ? p.k : p.k / 2);
  const int64_t records = block.map.k_records();
  const int64_t begin = blockIdx.y * chunks_per_block * kChunkRecords;
  const int64_t end = min(records, begin + chunks_per_block * kChunkRecords);
  for (int64_t record = begin; record < end; record += kChunkRecords) {
    load_codes<kInt8>(block, record, aligned, tile, bad_code);
    load_scales<kVllm>(block, record, tile, bad_scale);
    __syncthreads();  // tile: filled above, read below
    uint8_t* out = p.weights + expert * p.expert_stride + block.map.record_offset(row_block, record);
    const int num_records = static_cast<int>(min(static_cast<int64_t>(kChunkRecords), end - record));
    write_codes<kVllm>(block.map, tile, num_records, out);
    write_scales(block.map, tile, num_records, out);
    __syncthreads();  // tile: read above, filled by the next turn
  }
  if (bad_scale) atomicOr(p.status, kStatusBadScale);
  if (bad_code) atomicOr(p.status, kStatusBadCode);
}

// Few row blocks share their k among more blocks of threads: about sixteen a multiprocessor keep the memory busy.
constexpr int64_t kWantedBlocks = 16 * 132;

template <bool kInt8, bool kVllm>
void launch(const DevicePrepareW4& p, cudaStream_t stream) {
  const W4Hopper64 map{p.part_n * p.num_parts, p.k, p.group_size, kVllm};
  const int64_t chunks = layout::ceil_div(map.k_records(), kChunkRecords);
  const int64_t wanted = layout::ceil_div(kWantedBlocks, map.row_blocks() * p.num_experts);
  const int64_t chunks_per_block = layout::ceil_div(chunks, std::min(wanted, chunks));
  const dim3 grid(static_cast<unsigned>(map.row_blocks()),
                  static_cast<unsigned>(layout::ceil_div(chunks, chunks_per_block)),
                  static_cast<unsigned>(p.num_experts));
  prepare_w4_kernel<kInt8, kVllm><<<grid, kPrepareThreads, 0, stream>>>(p, chunks_per_block);
  check_launch("prepare_w4");
}

}  // namespace

void prepare_w4(const DevicePrepareW4& p, device::Stream stream) {
  QD_CHECK(p.num_experts >= 0 && p.num_experts <= kMaxPrepareExperts, "more experts than a launch has pointers for");
  if (p.num_experts == 0) return;
  const bool vllm = p.numerics == Numerics::kVllm;
  if (p.source == W4Source::kInt8) {
    vllm ? launch<true, true>(p, native(stream)) : launch<true, false>(p, native(stream));
  } else {
    vllm ? launch<false, true>(p, native(stream)) : launch<false, false>(p, native(stream));
  }
}

}  // namespace quadrille::kernels::cuda
