// SPDX-License-Identifier: Apache-2.0
// Where the parts of a run lie follows from its kind alone: there is one walk over them, for sizes, views and copies.
#include "moe/matrix_bytes.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "layout/bf16_lanes16.h"
#include "layout/w4_lanes16.h"

namespace quadrille::moe {
namespace {

using kernels::Numerics;
using prepare::AlignedBuffer;
using prepare::PreparedBf16;
using prepare::PreparedW4;

template <typename T>
std::span<const std::byte> bytes_of(const AlignedBuffer<T>& buffer) {
  return std::as_bytes(std::span<const T>(buffer.data(), static_cast<size_t>(buffer.size())));
}

// Values of each part of a kind.
struct PartSizes {
  int64_t codes32 = 0, codes16 = 0, scale_bf16 = 0, scale_e4m3 = 0, channel = 0, bias = 0;
};

PartSizes part_sizes(const MatrixKind& kind) {
  PartSizes sizes;
  sizes.bias = kind.has_bias ? kind.n : 0;
  if (!kind.is_w4) {
    sizes.codes16 = layout::Bf16Lanes16{kind.n, kind.k}.size();
    return sizes;
  }
  const layout::W4Lanes16 codes{kind.n, kind.k};
  const layout::ScaleLanes16 scales{kind.n, layout::num_groups(kind.k, kind.group_size)};
  sizes.codes32 = codes.num_words();
  (kind.numerics == Numerics::kExact ? sizes.scale_bf16 : sizes.scale_e4m3) = scales.size();
  if (kind.numerics == Numerics::kVllm) sizes.channel = codes.blocks() * layout::kLanes;
  return sizes;
}

constexpr uint64_t rounded(uint64_t bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

// Walks a run from part to part.
class Walk {
 public:
  Walk(std::span<const std::byte> run, bool copies) : run_(run), copies_(copies) {}
  template <typename T>
  AlignedBuffer<T> take(int64_t count) {
    if (count == 0) return {};
    const std::byte* from = run_.data() + at_;
    at_ += rounded(static_cast<uint64_t>(count) * sizeof(T));
    QD_CHECK(at_ <= run_.size(), "the run has the bytes of its kind");
    if (!copies_) return AlignedBuffer<T>::borrow(reinterpret_cast<const T*>(from), count);
    AlignedBuffer<T> buffer(count);
    std::memcpy(buffer.data(), from, static_cast<size_t>(buffer.size_bytes()));
    return buffer;
  }

 private:
  std::span<const std::byte> run_;
  bool copies_;
  uint64_t at_ = 0;
};

ExpertMatrix read_matrix(const MatrixKind& kind, Walk walk) {
  const PartSizes sizes = part_sizes(kind);
  ExpertMatrix matrix;
  if (kind.is_w4) {
    PreparedW4 w4;
    w4.numerics = kind.numerics;
    w4.tag = tag_of(kind);
    w4.n = kind.n;
    w4.k = kind.k;
    w4.group_size = kind.group_size;
    w4.codes = walk.take<uint32_t>(sizes.codes32);
    w4.scale_bf16 = walk.take<uint16_t>(sizes.scale_bf16);
    w4.scale_e4m3 = walk.take<uint8_t>(sizes.scale_e4m3);
    w4.channel_scale = walk.take<float>(sizes.channel);
    matrix.weights = std::move(w4);
  } else {
    PreparedBf16 bf16;
    bf16.tag = tag_of(kind);
    bf16.n = kind.n;
    bf16.k = kind.k;
    bf16.codes = walk.take<uint16_t>(sizes.codes16);
    matrix.weights = std::move(bf16);
  }
  const AlignedBuffer<float> bias = walk.take<float>(sizes.bias);
  matrix.bias.assign(bias.data(), bias.data() + bias.size());
  return matrix;
}

}  // namespace

layout::LayoutTag tag_of(const MatrixKind& kind) {
  return kind.is_w4 ? layout::kW4Lanes16Tag : layout::kBf16Lanes16Tag;
}

MatrixKind kind_of(const MatrixRef& matrix) {
  if (matrix.w4 != nullptr) {
    const PreparedW4& w4 = *matrix.w4;
    return {true, w4.numerics, w4.n, w4.k, w4.group_size, !matrix.bias.empty()};
  }
  return {false, Numerics::kExact, matrix.bf16->n, matrix.bf16->k, 0, !matrix.bias.empty()};
}

MatrixRef ref_of(const ExpertMatrix& matrix) {
  return {std::get_if<PreparedW4>(&matrix.weights), std::get_if<PreparedBf16>(&matrix.weights), matrix.bias};
}

std::vector<std::span<const std::byte>> parts_of(const MatrixRef& matrix) {
  if (matrix.w4 == nullptr) return {bytes_of(matrix.bf16->codes), std::as_bytes(matrix.bias)};
  const PreparedW4& w4 = *matrix.w4;
  return {bytes_of(w4.codes), bytes_of(w4.scale_bf16), bytes_of(w4.scale_e4m3), bytes_of(w4.channel_scale),
          std::as_bytes(matrix.bias)};
}

uint64_t run_bytes(const MatrixKind& kind) {
  const PartSizes sizes = part_sizes(kind);
  const auto bytes = [](int64_t count, size_t each) { return rounded(static_cast<uint64_t>(count) * each); };
  return bytes(sizes.codes32, 4) + bytes(sizes.codes16, 2) + bytes(sizes.scale_bf16, 2) + bytes(sizes.scale_e4m3, 1) +
         bytes(sizes.channel, 4) + bytes(sizes.bias, 4);
}

ExpertMatrix view_matrix(const MatrixKind& kind, std::span<const std::byte> run) {
  return read_matrix(kind, Walk(run, false));
}

ExpertMatrix copy_matrix(const MatrixKind& kind, std::span<const std::byte> run) {
  return read_matrix(kind, Walk(run, true));
}

MatrixHeader header_of(const MatrixKind& kind) {
  const layout::LayoutTag tag = tag_of(kind);
  MatrixHeader header;
  std::strncpy(header.tag, tag.name, sizeof(header.tag) - 1);
  header.tag_version = tag.version;
  header.numerics = kind.is_w4 && kind.numerics == Numerics::kVllm ? 1 : 0;
  header.n = kind.n;
  header.k = kind.k;
  header.group_size = kind.group_size;
  header.is_w4 = kind.is_w4 ? 1 : 0;
  header.has_bias = kind.has_bias ? 1 : 0;
  return header;
}

std::string text_of(const MatrixHeader& m) {
  const size_t length = std::find(m.tag, m.tag + sizeof(m.tag), '\0') - m.tag;
  return fmt::format("{} version {} [{}, {}] {} group {} {} bias", std::string(m.tag, length), m.tag_version, m.n, m.k,
                     m.is_w4 == 0      ? "bf16"
                     : m.numerics == 1 ? "vllm"
                                       : "exact",
                     m.group_size, m.has_bias == 0 ? "without" : "with");
}

}  // namespace quadrille::moe
