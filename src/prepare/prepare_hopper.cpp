// SPDX-License-Identifier: Apache-2.0
// Fills the Hopper layout one row block at a time: 64 rows are gathered as words of two's complement nibbles, then the
// records are written in their own order, piece by piece, as the device kernel does it.
#include "prepare/prepare_hopper.h"

#include <cstring>

#include "core/check.h"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "numerics/hopper_codes.h"
#include "prepare/canonical_read.h"

namespace quadrille::prepare {
namespace {

using kernels::Numerics;
using layout::kRecordRows;
using layout::W4Hopper64;

using Parts = std::span<const CanonicalW4>;

PartRow source_row(size_t num_parts, int64_t prepared_row) {
  if (num_parts == 1) return {0, prepared_row};
  const layout::InterleavedRow place = layout::deinterleave_row(prepared_row);
  return {static_cast<size_t>(place.part), place.row};
}

Status check_hopper_parts(Parts parts) {
  QD_TRY_STATUS(check_canonical(parts));
  if (parts.size() > 2) {
    return make_error(ErrorCode::kInvalidArgument, "{} matrices: the Hopper layout takes one, or gate and up",
                      parts.size());
  }
  if (parts.size() == 2 && (parts[0].n != parts[1].n || parts[0].n % 8 != 0)) {
    return make_error(ErrorCode::kUnsupported,
                      "gate and up are interleaved eight rows and eight: expected equal row counts, a multiple of 8, "
                      "found {} and {}",
                      parts[0].n, parts[1].n);
  }
  return {};
}

// The words of a row block, [64][words], zero behind n and behind k.
Status gather_codes(Parts parts, const W4Hopper64& map, int64_t block, std::vector<uint32_t>& words) {
  const int64_t pitch = map.padded_k() / 8;
  words.assign(static_cast<size_t>(kRecordRows * pitch), 0);
  for (int64_t r = 0; r < kRecordRows && block * kRecordRows + r < map.n; ++r) {
    const PartRow place = source_row(parts.size(), block * kRecordRows + r);
    for (int64_t w = 0; w < map.k / 8; ++w) {
      const CanonicalWord word = load_word(parts[place.part], place.row, w);
      if (word.bad_column >= 0) return bad_code(parts.size(), place, word.bad_column);
      words[static_cast<size_t>(r * pitch + w)] = word.value;
    }
  }
  return {};
}

void write_codes(const W4Hopper64& map, int64_t block, const std::vector<uint32_t>& words, bool vllm,
                 uint8_t* weights) {
  const int64_t pitch = map.padded_k() / 8;
  const auto four = [&](int64_t row, int64_t column) {
    return words[static_cast<size_t>(row * pitch + column / 8)] >> (column % 8 * 4);
  };
  for (int64_t record = 0; record < map.k_records(); ++record) {
    uint8_t* out = weights + map.record_offset(block, record);
    for (int word = 0; word < layout::kRecordCodeBytes / 4; ++word) {
      const int64_t row = W4Hopper64::piece_row(word / 4);
      const int64_t column = record * layout::kRecordK + W4Hopper64::piece_column(word / 4) + word % 4 * 16;
      const uint32_t x0 = four(row, column), x1 = four(row + 8, column);
      const uint32_t packed = vllm ? numerics::pack_vllm_int4(x0, x1) : numerics::pack_exact_int4(x0, x1);
      std::memcpy(out + word * 4, &packed, 4);
    }
  }
}

// The scales of one prepared row into all records of its block; a row behind n has padding everywhere.
Status write_scales(Parts parts, int64_t row, PreparedHopperW4& out) {
  const W4Hopper64& map = out.map;
  const bool vllm = out.numerics == Numerics::kVllm;
  const int64_t groups = row < map.n ? layout::num_groups(map.k, map.group_size) : 0;
  const PartRow place = source_row(parts.size(), row);
  const auto scale_of = [&](int64_t group) { return load_scale(parts[place.part], place.row * groups + group); };
  float absmax = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    if (!is_finite_bf16(scale_of(g))) return bad_scale(parts.size(), place, g, scale_of(g));
    absmax = numerics::absmax_step(absmax, numerics::bf16_to_f32(scale_of(g)));
  }
  if (vllm && groups > 0) {
    QD_TRY(absmax, channel_absmax(parts[place.part], parts.size(), place, absmax));
  }
  const float channel = numerics::channel_scale_of_absmax(absmax);
  if (vllm) out.channel_scale[static_cast<size_t>(row)] = groups > 0 ? numerics::channel_scale8(channel) : 0.0f;
  for (int64_t i = 0; i < map.k_records() * map.groups_per_record(); ++i) {
    const int64_t record = i / map.groups_per_record();
    const int group = static_cast<int>(i % map.groups_per_record());
    const int64_t source = map.source_group(record, group);
    uint8_t* destination = out.weights.data() + map.scale_offset(row, record, group);
    if (vllm) {
      *destination = source < groups ? numerics::group_scale8_code(
                                           numerics::group_scale_code(numerics::bf16_to_f32(scale_of(source)), channel))
                                     : 0;
    } else {
      const uint16_t scale = source < groups ? scale_of(source) : layout::kPadScaleBf16;
      std::memcpy(destination, &scale, 2);
    }
  }
  return {};
}

Status write_block(Parts parts, int64_t block, PreparedHopperW4& out) {
  std::vector<uint32_t> words;
  QD_TRY_STATUS(gather_codes(parts, out.map, block, words));
  write_codes(out.map, block, words, out.numerics == Numerics::kVllm, out.weights.data());
  for (int64_t r = 0; r < kRecordRows; ++r) QD_TRY_STATUS(write_scales(parts, block * kRecordRows + r, out));
  return {};
}

int code_of(const PreparedHopperW4& matrix, int64_t row, int64_t column) {
  const layout::HopperCodePlace place = matrix.map.code_place(row, column);
  uint32_t word = 0;
  std::memcpy(&word, matrix.weights.data() + place.word * 4, 4);
  int8_t q[2][4];
  if (matrix.numerics == Numerics::kVllm) {
    numerics::unpack_vllm_word(word, q[0], q[1]);
  } else {
    numerics::unpack_exact_word(word, q[0], q[1]);
  }
  return q[place.half][place.b];
}

uint16_t exact_scale_of(const PreparedHopperW4& matrix, int64_t row, int64_t group) {
  const int64_t in_record = matrix.map.groups_per_record();
  uint16_t scale = 0;
  std::memcpy(
      &scale,
      matrix.weights.data() + matrix.map.scale_offset(row, group / in_record, static_cast<int>(group % in_record)), 2);
  return scale;
}

}  // namespace

Result<PreparedHopperW4> prepare_hopper_w4(Parts parts, Numerics numerics, ThreadPool* pool) {
  QD_TRY_STATUS(check_hopper_parts(parts));
  PreparedHopperW4 out;
  out.numerics = numerics;
  const bool vllm = numerics == Numerics::kVllm;
  out.tag = vllm ? layout::kW4Hopper64VllmTag : layout::kW4Hopper64ExactTag;
  out.map = {total_rows(parts), parts[0].k, parts[0].group_size, vllm};
  out.weights.resize(static_cast<size_t>(out.map.num_bytes()));
  if (vllm) out.channel_scale.resize(static_cast<size_t>(out.map.padded_n()));
  QD_TRY_STATUS(for_blocks(pool, out.map.row_blocks(), [&](int64_t block) { return write_block(parts, block, out); }));
  return out;
}

std::vector<CanonicalCopy> unprepare_hopper(const PreparedHopperW4& matrix, int num_parts) {
  const bool exact = matrix.numerics == Numerics::kExact;
  QD_CHECK(matrix.tag == (exact ? layout::kW4Hopper64ExactTag : layout::kW4Hopper64VllmTag),
           "unprepare_hopper() reads the Hopper layout only");
  QD_CHECK(num_parts == 1 || (num_parts == 2 && matrix.map.n % 16 == 0), "one matrix, or gate and up");
  const W4Hopper64& map = matrix.map;
  const int64_t rows = map.n / num_parts;
  const int64_t groups = layout::num_groups(map.k, map.group_size);
  std::vector<CanonicalCopy> parts;
  for (int part = 0; part < num_parts; ++part) {
    CanonicalCopy copy{rows, map.k, map.group_size, {}, {}};
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = num_parts == 1 ? i : layout::interleave_row(part, i);
      for (int64_t k = 0; k < map.k; k += 8) {
        uint32_t word = 0;
        for (int j = 0; j < 8; ++j) word |= numerics::uint4b8_of_q(code_of(matrix, row, k + j)) << (4 * j);
        copy.packed.push_back(word);
      }
      for (int64_t g = 0; g < groups && exact; ++g) copy.scales.push_back(exact_scale_of(matrix, row, g));
    }
    parts.push_back(std::move(copy));
  }
  return parts;
}

}  // namespace quadrille::prepare
