// SPDX-License-Identifier: Apache-2.0
// The bytes of a blob: header, then for gate_up and for down the codes, the scales, the channel scales, the bias.
#include "moe/expert_blob.h"

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

constexpr char kMagic[8] = {'Q', 'D', 'E', 'X', 'P', 'E', 'R', 'T'};
constexpr uint32_t kVersion = 1;

struct MatrixHeader {
  char tag[24] = {};
  uint32_t tag_version = 0;
  uint32_t numerics = 0;
  int64_t n = 0, k = 0, group_size = 0;
  uint32_t is_w4 = 0, has_bias = 0;
};
struct Header {
  char magic[8] = {};
  uint32_t version = 0;
  int32_t tensor_rank = 0, tensor_ranks = 0;
  uint32_t unused = 0;
  int64_t layer = 0, expert = 0;
  MatrixHeader gate_up, down;
  uint64_t payload_bytes = 0;
  uint64_t checksum = 0;  // of the header without it, and of the payload
};
static_assert(sizeof(Header) == 24 + 16 + 2 * 64 + 16, "no padding that the checksum would not define");

// Each step is a bijection of the sum and of the word: one changed word always shows.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      uint64_t word = 0;
      const size_t count = std::min(bytes.size(), sizeof(word));
      std::memcpy(&word, bytes.data(), count);
      sum_ = (sum_ ^ word) * 0x9e3779b97f4a7c15ull;
      sum_ ^= sum_ >> 29;
      bytes = bytes.subspan(count);
    }
  }
  uint64_t value() const { return sum_; }

 private:
  uint64_t sum_ = 0xcbf29ce484222325ull;
};

uint64_t checksum_of(std::span<const std::byte> blob) {
  Checksum sum;
  sum.add(blob.first(offsetof(Header, checksum)));
  sum.add(blob.subspan(sizeof(Header)));
  return sum.value();
}

layout::LayoutTag tag_of(const MatrixKind& kind) {
  return kind.is_w4 ? layout::kW4Lanes16Tag : layout::kBf16Lanes16Tag;
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

MatrixKind kind_of(const MatrixRef& matrix) {
  if (matrix.w4 != nullptr) {
    const PreparedW4& w4 = *matrix.w4;
    return {true, w4.numerics, w4.n, w4.k, w4.group_size, !matrix.bias.empty()};
  }
  return {false, Numerics::kExact, matrix.bf16->n, matrix.bf16->k, 0, !matrix.bias.empty()};
}

// An empty matrix of that kind: the buffers have their sizes, which follow from it.
ExpertMatrix make_matrix(const MatrixKind& kind) {
  ExpertMatrix matrix;
  if (kind.has_bias) matrix.bias.resize(static_cast<size_t>(kind.n));
  if (!kind.is_w4) {
    PreparedBf16 bf16;
    bf16.tag = tag_of(kind);
    bf16.n = kind.n;
    bf16.k = kind.k;
    bf16.codes = AlignedBuffer<uint16_t>(layout::Bf16Lanes16{kind.n, kind.k}.size());
    matrix.weights = std::move(bf16);
    return matrix;
  }
  const layout::W4Lanes16 codes{kind.n, kind.k};
  const layout::ScaleLanes16 scales{kind.n, layout::num_groups(kind.k, kind.group_size)};
  PreparedW4 w4;
  w4.numerics = kind.numerics;
  w4.tag = tag_of(kind);
  w4.n = kind.n;
  w4.k = kind.k;
  w4.group_size = kind.group_size;
  w4.codes = AlignedBuffer<uint32_t>(codes.num_words());
  if (kind.numerics == Numerics::kExact) {
    w4.scale_bf16 = AlignedBuffer<uint16_t>(scales.size());
  } else {
    w4.scale_e4m3 = AlignedBuffer<uint8_t>(scales.size());
    w4.channel_scale = AlignedBuffer<float>(codes.blocks() * layout::kLanes);
  }
  matrix.weights = std::move(w4);
  return matrix;
}

template <typename T>
std::span<const std::byte> bytes_of(const AlignedBuffer<T>& buffer) {
  return std::as_bytes(std::span<const T>(buffer.data(), static_cast<size_t>(buffer.size())));
}

MatrixRef ref_of(const ExpertMatrix& matrix) {
  return {std::get_if<PreparedW4>(&matrix.weights), std::get_if<PreparedBf16>(&matrix.weights), matrix.bias};
}

std::vector<std::span<const std::byte>> parts_of(const MatrixRef& gate_up, const MatrixRef& down) {
  auto parts = moe::parts_of(gate_up);
  for (const auto part : moe::parts_of(down)) parts.push_back(part);
  return parts;
}

uint64_t total_bytes(const std::vector<std::span<const std::byte>>& parts) {
  uint64_t total = 0;
  for (const auto part : parts) total += part.size();
  return total;
}

Header make_header(const ExpertName& name, const MatrixKind& gate_up, const MatrixKind& down) {
  Header header;
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.tensor_rank = name.tensor_rank;
  header.tensor_ranks = name.tensor_ranks;
  header.layer = name.layer;
  header.expert = name.expert;
  header.gate_up = header_of(gate_up);
  header.down = header_of(down);
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

Error bad(const std::string& what, const std::string& expected, const std::string& found) {
  return make_error(ErrorCode::kInvalidData, "expert blob: expected {} {}, found {}", what, expected, found);
}

Status check_matrix(const MatrixHeader& found, const MatrixHeader& expected, const char* name) {
  if (std::memcmp(&found, &expected, sizeof(found)) == 0) return {};
  return bad(name, text_of(expected), text_of(found));
}

Status check_header(const Header& found, const Header& expected) {
  if (std::memcmp(found.magic, expected.magic, sizeof(kMagic)) != 0) {
    return bad("the bytes of", "an expert", "other bytes at the beginning");
  }
  if (found.version != expected.version) {
    return bad("version", std::to_string(expected.version), std::to_string(found.version));
  }
  const auto name = [](const Header& h) {
    return fmt::format("{} of layer {}, cut {} of {}", h.expert, h.layer, h.tensor_rank, h.tensor_ranks);
  };
  if (name(found) != name(expected)) return bad("expert", name(expected), name(found));
  QD_TRY_STATUS(check_matrix(found.gate_up, expected.gate_up, "gate_up"));
  return check_matrix(found.down, expected.down, "down");
}

}  // namespace

std::vector<std::span<const std::byte>> parts_of(const MatrixRef& matrix) {
  if (matrix.w4 == nullptr) return {bytes_of(matrix.bf16->codes), std::as_bytes(matrix.bias)};
  const PreparedW4& w4 = *matrix.w4;
  return {bytes_of(w4.codes), bytes_of(w4.scale_bf16), bytes_of(w4.scale_e4m3), bytes_of(w4.channel_scale),
          std::as_bytes(matrix.bias)};
}

Blob pack_expert(const ExpertName& name, const MatrixRef& gate_up, const MatrixRef& down) {
  const auto parts = parts_of(gate_up, down);
  Header header = make_header(name, kind_of(gate_up), kind_of(down));
  header.payload_bytes = total_bytes(parts);
  Blob blob;
  blob.reserve(sizeof(header) + header.payload_bytes);
  const auto head = std::as_bytes(std::span(&header, 1));
  blob.insert(blob.end(), head.begin(), head.end());
  for (const auto part : parts) blob.insert(blob.end(), part.begin(), part.end());
  const uint64_t sum = checksum_of(blob);
  std::memcpy(blob.data() + offsetof(Header, checksum), &sum, sizeof(sum));
  return blob;
}

Result<Expert> unpack_expert(std::span<const std::byte> blob, const ExpertName& name, const ExpertKind& kind) {
  if (blob.size() < sizeof(Header)) {
    return bad("at least", fmt::format("{} bytes of a header", sizeof(Header)), fmt::format("{}", blob.size()));
  }
  Header found;
  std::memcpy(&found, blob.data(), sizeof(found));
  QD_TRY_STATUS(check_header(found, make_header(name, kind.gate_up, kind.down)));
  Expert expert{make_matrix(kind.gate_up), make_matrix(kind.down)};
  const auto parts = parts_of(ref_of(expert.gate_up), ref_of(expert.down));
  const uint64_t payload = total_bytes(parts);
  if (found.payload_bytes != payload || blob.size() != sizeof(Header) + payload) {
    return bad("a payload of", fmt::format("{} bytes", payload),
               fmt::format("{} announced and {} there", found.payload_bytes, blob.size() - sizeof(Header)));
  }
  if (const uint64_t sum = checksum_of(blob); sum != found.checksum) {
    return bad("the checksum", fmt::format("{:016x}", found.checksum), fmt::format("{:016x}", sum));
  }
  size_t at = sizeof(Header);
  for (const auto part : parts) {
    // The parts are those of `expert`, which is ours to write.
    if (!part.empty()) std::memcpy(const_cast<std::byte*>(part.data()), blob.data() + at, part.size());
    at += part.size();
  }
  return expert;
}

Status send_blob(parallel::Communicator& ranks, int from, int to, Blob* blob) {
  uint64_t size = blob->size();
  QD_TRY_STATUS(ranks.broadcast(std::as_writable_bytes(std::span(&size, 1)), from));
  if (from == to) return {};
  std::vector<size_t> send(static_cast<size_t>(ranks.size())), recv(send);
  Blob received;
  if (ranks.rank() == from) send[static_cast<size_t>(to)] = size;
  if (ranks.rank() == to) {
    recv[static_cast<size_t>(from)] = size;
    received.resize(size);
  }
  const std::span<const std::byte> sent =
      ranks.rank() == from ? std::span<const std::byte>(*blob) : std::span<const std::byte>();
  QD_TRY_STATUS(ranks.all_to_all_v(sent, send, received, recv));
  if (ranks.rank() == to) *blob = std::move(received);
  return {};
}

}  // namespace quadrille::moe
