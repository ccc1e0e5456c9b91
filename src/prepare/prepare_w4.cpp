// SPDX-License-Identifier: Apache-2.0
// Fills the 16-lane layout block by block: a block's words come from 16 rows at a time, so both sides are streamed.
#include "prepare/prepare_w4.h"

#include <cstring>

#include "core/check.h"
#include "layout/w4_lanes16.h"
#include "numerics/bf16.h"
#include "numerics/group_scale.h"
#include "numerics/int4.h"
#include "prepare/canonical_read.h"

namespace quadrille::prepare {
namespace {

using kernels::Numerics;
using kernels::W4Source;
using layout::kLanes;

// The words of one row, spread over every 16th place from `destination` on.
Status fill_row(std::span<const CanonicalW4> parts, const PartRow& place, uint32_t* destination) {
  const CanonicalW4& m = parts[place.part];
  const int64_t words = m.k / 8;
  for (int64_t w = 0; w < words; ++w) {
    const CanonicalWord word = load_word(m, place.row, w);
    if (word.bad_column >= 0) return bad_code(parts.size(), place, word.bad_column);
    destination[w * kLanes] = word.value;
  }
  return {};
}

Status fill_codes(std::span<const CanonicalW4> parts, int64_t block, PreparedW4& out) {
  const layout::W4Lanes16 map{out.n, out.k};
  uint32_t* destination = out.codes.data() + map.word_index(block * kLanes, 0);
  std::memset(destination, 0, static_cast<size_t>(map.words_per_lane() * kLanes) * 4);
  for (int64_t lane = 0; lane < kLanes && block * kLanes + lane < out.n; ++lane) {
    QD_TRY_STATUS(fill_row(parts, part_row(parts, block * kLanes + lane), destination + lane));
  }
  return {};
}

// The scales of one row: checked, then stored as they are (exact) or split (vllm).
Status fill_scales(std::span<const CanonicalW4> parts, int64_t row, PreparedW4& out) {
  const int64_t groups = layout::num_groups(out.k, out.group_size);
  const layout::ScaleLanes16 map{out.n, groups};
  const PartRow place = part_row(parts, row);
  float absmax = 0.0f;
  for (int64_t g = 0; g < groups; ++g) {
    const uint16_t scale = load_scale(parts[place.part], place.row * groups + g);
    if (!is_finite_bf16(scale)) return bad_scale(parts.size(), place, g, scale);
    absmax = numerics::absmax_step(absmax, numerics::bf16_to_f32(scale));
    if (out.numerics == Numerics::kExact) out.scale_bf16[map.offset(row, g)] = scale;
  }
  if (out.numerics == Numerics::kExact) return {};
  QD_TRY(absmax, channel_absmax(parts[place.part], parts.size(), place, absmax));
  const float channel = numerics::channel_scale_of_absmax(absmax);
  out.channel_scale[row] = numerics::channel_scale8(channel);
  for (int64_t g = 0; g < groups; ++g) {
    const float scale = numerics::bf16_to_f32(load_scale(parts[place.part], place.row * groups + g));
    out.scale_e4m3[map.offset(row, g)] = numerics::group_scale8_code(numerics::group_scale_code(scale, channel));
  }
  return {};
}

Status fill_block(std::span<const CanonicalW4> parts, int64_t block, PreparedW4& out) {
  QD_TRY_STATUS(fill_codes(parts, block, out));
  for (int64_t row = block * kLanes; row < (block + 1) * kLanes && row < out.n; ++row) {
    QD_TRY_STATUS(fill_scales(parts, row, out));
  }
  return {};
}

}  // namespace

Status check_canonical(std::span<const CanonicalW4> parts) {
  if (parts.empty()) return make_error(ErrorCode::kInvalidArgument, "no matrix to prepare");
  for (const CanonicalW4& m : parts) {
    const int64_t g = m.group_size;
    if (g != 0 && g != 32 && g != 64 && g != 128) {
      return make_error(ErrorCode::kUnsupported,
                        "group size {} is not supported: legal are 32, 64, 128 and one scale a channel", g);
    }
    if (m.n <= 0 || m.k <= 0 || m.k % 8 != 0) {
      return make_error(ErrorCode::kUnsupported, "a 4-bit matrix needs n > 0 and k in multiples of 8, found [{}, {}]",
                        m.n, m.k);
    }
    if ((m.packed == nullptr) == (m.codes == nullptr) || m.scales == nullptr) {
      return make_error(ErrorCode::kInvalidArgument, "a 4-bit matrix needs scales, and either packed words or codes");
    }
    if (m.packed != nullptr && m.packed_source == W4Source::kInt8) {
      return make_error(ErrorCode::kInvalidArgument,
                        "packed words hold uint4b8 or int4 nibbles; 8-bit codes belong into 'codes', one byte each");
    }
    if (m.k != parts[0].k || g != parts[0].group_size) {
      return make_error(ErrorCode::kInvalidArgument,
                        "matrices that are stacked must agree: found k {} with group size {} beside k {} with group "
                        "size {}",
                        m.k, g, parts[0].k, parts[0].group_size);
    }
  }
  return {};
}

kernels::W4Matrix PreparedW4::view() const {
  return {codes.data(), scale_bf16.data(), scale_e4m3.data(), channel_scale.data()};
}

int64_t PreparedW4::size_bytes() const {
  return codes.size_bytes() + scale_bf16.size_bytes() + scale_e4m3.size_bytes() + channel_scale.size_bytes();
}

Result<PreparedW4> prepare_w4(std::span<const CanonicalW4> parts, Numerics numerics, ThreadPool* pool) {
  QD_TRY_STATUS(check_canonical(parts));
  PreparedW4 out;
  out.numerics = numerics;
  out.tag = layout::kW4Lanes16Tag;
  out.k = parts[0].k;
  out.group_size = parts[0].group_size;
  out.n = total_rows(parts);
  const layout::W4Lanes16 codes{out.n, out.k};
  const layout::ScaleLanes16 scales{out.n, layout::num_groups(out.k, out.group_size)};
  out.codes = AlignedBuffer<uint32_t>(codes.num_words());
  if (numerics == Numerics::kExact) {
    out.scale_bf16 = AlignedBuffer<uint16_t>(scales.size());
    out.scale_bf16.fill_zero();
  } else {
    out.scale_e4m3 = AlignedBuffer<uint8_t>(scales.size());
    out.scale_e4m3.fill_zero();
    out.channel_scale = AlignedBuffer<float>(codes.blocks() * kLanes);
    out.channel_scale.fill_zero();
  }
  QD_TRY_STATUS(for_blocks(pool, codes.blocks(), [&](int64_t block) { return fill_block(parts, block, out); }));
  return out;
}

Result<PreparedW4> prepare_w4(const CanonicalW4& matrix, Numerics numerics, ThreadPool* pool) {
  return prepare_w4(std::span(&matrix, 1), numerics, pool);
}

CanonicalCopy unprepare(const PreparedW4& matrix) {
  QD_CHECK(matrix.tag == layout::kW4Lanes16Tag, "unprepare() reads the 16-lane layout only");
  const layout::W4Lanes16 map{matrix.n, matrix.k};
  const int64_t groups = layout::num_groups(matrix.k, matrix.group_size);
  const layout::ScaleLanes16 scales{matrix.n, groups};
  CanonicalCopy out{matrix.n, matrix.k, matrix.group_size, {}, {}};
  out.packed.reserve(static_cast<size_t>(matrix.n * matrix.k / 8));
  for (int64_t row = 0; row < matrix.n; ++row) {
    for (int64_t k = 0; k < matrix.k; k += 8) {
      out.packed.push_back(numerics::flip_uint4b8_word(matrix.codes[map.word_index(row, k)]));
    }
    for (int64_t g = 0; g < groups && matrix.numerics == Numerics::kExact; ++g) {
      out.scales.push_back(matrix.scale_bf16[scales.offset(row, g)]);
    }
  }
  return out;
}

}  // namespace quadrille::prepare
