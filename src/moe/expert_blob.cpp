// SPDX-License-Identifier: Apache-2.0
// The bytes of a blob: header, then the runs of gate_up and of down.
#include "moe/expert_blob.h"

#include <cstring>

#include "core/check.h"
#include "core/checksum.h"

namespace quadrille::moe {
namespace {

constexpr char kMagic[8] = {'Q', 'D', 'E', 'X', 'P', 'E', 'R', 'T'};
constexpr uint32_t kVersion = 2;

struct Header {
  char magic[8] = {};
  uint32_t version = 0;
  int32_t tensor_rank = 0, tensor_ranks = 0;
  uint32_t unused = 0;
  int64_t layer = 0, expert = 0;
  MatrixHeader gate_up, down;
  uint64_t payload_bytes = 0;
  uint64_t reserved = 0;
  uint64_t checksum = 0;  // of the header without it, and of the payload
};
static_assert(sizeof(Header) == 24 + 16 + 2 * 64 + 24, "no padding that the checksum would not define");
static_assert(sizeof(Header) % kPartAlignment == 0, "the first part keeps the alignment of the blob");

uint64_t checksum_of_blob(std::span<const std::byte> blob) {
  Checksum sum;
  sum.add(blob.first(offsetof(Header, checksum)));
  sum.add(blob.subspan(sizeof(Header)));
  return sum.value();
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

uint64_t blob_bytes(const ExpertKind& kind) {
  return sizeof(Header) + run_bytes(kind.gate_up) + run_bytes(kind.down);
}

Blob pack_expert(const ExpertName& name, const MatrixRef& gate_up, const MatrixRef& down) {
  const ExpertKind kind{kind_of(gate_up), kind_of(down)};
  Header header = make_header(name, kind.gate_up, kind.down);
  header.payload_bytes = blob_bytes(kind) - sizeof(header);
  Blob blob;
  blob.reserve(blob_bytes(kind));
  const auto append = [&blob](std::span<const std::byte> piece) {
    blob.insert(blob.end(), piece.begin(), piece.end());
  };
  append(std::as_bytes(std::span(&header, 1)));
  each_piece(gate_up, append);
  each_piece(down, append);
  const uint64_t sum = checksum_of_blob(blob);
  std::memcpy(blob.data() + offsetof(Header, checksum), &sum, sizeof(sum));
  return blob;
}

Status check_blob(std::span<const std::byte> blob, const ExpertName& name, const ExpertKind& kind) {
  if (blob.size() < sizeof(Header)) {
    return bad("at least", fmt::format("{} bytes of a header", sizeof(Header)), fmt::format("{}", blob.size()));
  }
  Header found;
  std::memcpy(&found, blob.data(), sizeof(found));
  QD_TRY_STATUS(check_header(found, make_header(name, kind.gate_up, kind.down)));
  const uint64_t payload = blob_bytes(kind) - sizeof(Header);
  if (found.payload_bytes != payload || blob.size() != sizeof(Header) + payload) {
    return bad("a payload of", fmt::format("{} bytes", payload),
               fmt::format("{} announced and {} there", found.payload_bytes, blob.size() - sizeof(Header)));
  }
  const uint64_t sum = checksum_of_blob(blob);
  if (sum == found.checksum) return {};
  return bad("the checksum", fmt::format("{:016x}", found.checksum), fmt::format("{:016x}", sum));
}

Result<Expert> unpack_expert(std::span<const std::byte> blob, const ExpertName& name, const ExpertKind& kind) {
  QD_TRY_STATUS(check_blob(blob, name, kind));
  const auto payload = blob.subspan(sizeof(Header));
  return Expert{copy_matrix(kind.gate_up, payload), copy_matrix(kind.down, payload.subspan(run_bytes(kind.gate_up)))};
}

Expert view_expert(std::span<const std::byte> blob, const ExpertKind& kind) {
  QD_CHECK(blob.size() == blob_bytes(kind), "a blob of the bytes of its kind");
  const auto payload = blob.subspan(sizeof(Header));
  return {view_matrix(kind.gate_up, payload), view_matrix(kind.down, payload.subspan(run_bytes(kind.gate_up)))};
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
