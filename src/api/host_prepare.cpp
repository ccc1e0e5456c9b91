// SPDX-License-Identifier: Apache-2.0
// Prepared weights as bytes that say what they are, for both layouts, and back to a checkpoint's tensors.
#include <cstring>
#include <memory>

#include "api/call.h"
#include "api/host.h"
#include "core/checksum.h"
#include "layout/w4_hopper64.h"
#include "moe/matrix_bytes.h"
#include "prepare/prepare_hopper.h"

namespace quadrille::api {
namespace {

using moe::MatrixHeader;
using moe::MatrixKind;
using prepare::PreparedHopperW4;

constexpr char kMagic[8] = {'Q', 'D', 'P', 'R', 'E', 'P', '0', '1'};

struct Head {
  char magic[8] = {};
  int64_t num_experts = 0, num_parts = 0;
  uint64_t bytes = 0;     // all of it
  uint64_t checksum = 0;  // of the head with 0 here, then of what follows
  uint64_t unused[3] = {};
  MatrixHeader matrix;
};
static_assert(sizeof(Head) == 128);

constexpr uint64_t rounded(uint64_t bytes) {
  return (bytes + moe::kPartAlignment - 1) / moe::kPartAlignment * moe::kPartAlignment;
}

struct Plan {
  MatrixKind kind;
  bool is_hopper = false;
  int64_t num_experts = 0, num_parts = 0;

  bool is_vllm() const { return kind.numerics == kernels::Numerics::kVllm; }
  layout::W4Hopper64 map() const { return {kind.n, kind.k, kind.group_size, is_vllm()}; }
  uint64_t expert_bytes() const {
    if (!is_hopper) return moe::run_bytes(kind);
    const uint64_t channel = is_vllm() ? static_cast<uint64_t>(map().padded_n()) * sizeof(float) : 0;
    return rounded(static_cast<uint64_t>(map().num_bytes())) + rounded(channel);
  }
  uint64_t bytes() const { return sizeof(Head) + expert_bytes() * static_cast<uint64_t>(num_experts); }
  layout::LayoutTag tag() const {
    if (!is_hopper) return moe::tag_of(kind);
    return is_vllm() ? layout::kW4Hopper64VllmTag : layout::kW4Hopper64ExactTag;
  }
  Head head() const {
    Head made;
    std::memcpy(made.magic, kMagic, sizeof kMagic);
    made.num_experts = num_experts;
    made.num_parts = num_parts;
    made.bytes = bytes();
    made.matrix = moe::header_of(kind);
    std::memset(made.matrix.tag, 0, sizeof made.matrix.tag);
    std::memcpy(made.matrix.tag, tag().name, std::strlen(tag().name));
    made.matrix.tag_version = tag().version;
    return made;
  }
};

uint64_t checksum_of(Head head, const std::byte* rest) {
  head.checksum = 0;
  Checksum sum;
  sum.add({reinterpret_cast<const std::byte*>(&head), sizeof head});
  sum.add({rest, head.bytes - sizeof head});
  return sum.value();
}

Result<Plan> plan_of(const qd_weights_desc* desc, int32_t layout) {
  QD_TRY_STATUS(check_host_desc(desc));
  if (layout != QD_LAYOUT_CPU && layout != QD_LAYOUT_HOPPER) {
    return make_error(ErrorCode::kUnsupported, "layout {}: legal are 0 (cpu), 1 (hopper)", layout);
  }
  if (desc->bias != nullptr) {
    return make_error(ErrorCode::kUnsupported, "bias: prepared bytes hold codes and scales alone; keep it beside them");
  }
  QD_TRY_STATUS(prepare::check_canonical(canonical_parts(*desc, 0)));
  Plan plan;
  plan.kind = {
      true, static_cast<kernels::Numerics>(desc->numerics), desc->part_n * desc->num_parts, desc->k, desc->group_size,
      false};
  plan.is_hopper = layout == QD_LAYOUT_HOPPER;
  plan.num_experts = desc->num_experts;
  plan.num_parts = desc->num_parts;
  return plan;
}

void take_bytes(std::span<const std::byte> piece, std::byte** at) {
  if (!piece.empty()) std::memcpy(*at, piece.data(), piece.size());
  *at += piece.size();
}

// One expert behind the head; the padding is zero already.
Status write_expert(const qd_weights_desc& desc, int64_t expert, const Plan& plan, ThreadPool* pool, std::byte* at) {
  const auto parts = canonical_parts(desc, expert);
  if (!plan.is_hopper) {
    QD_TRY(const prepare::PreparedW4 made, prepare::prepare_w4(parts, plan.kind.numerics, pool));
    moe::each_piece({&made, nullptr, {}}, [&](std::span<const std::byte> piece) { take_bytes(piece, &at); });
    return {};
  }
  QD_TRY(const PreparedHopperW4 made, prepare::prepare_hopper_w4(parts, plan.kind.numerics, pool));
  std::memcpy(at, made.weights.data(), made.weights.size());
  if (!made.channel_scale.empty()) {
    std::memcpy(at + rounded(made.weights.size()), made.channel_scale.data(),
                made.channel_scale.size() * sizeof(float));
  }
  return {};
}

Status write_all(ThreadPool* pool, const qd_weights_desc& desc, const Plan& plan, void* memory) {
  auto* begin = static_cast<std::byte*>(memory);
  std::memset(begin, 0, plan.bytes());
  for (int64_t e = 0; e < plan.num_experts; ++e) {
    std::byte* at = begin + sizeof(Head) + static_cast<uint64_t>(e) * plan.expert_bytes();
    if (auto done = write_expert(desc, e, plan, pool, at); !done) return done.error().in(fmt::format("expert {}", e));
  }
  Head head = plan.head();
  head.checksum = checksum_of(head, begin + sizeof head);
  std::memcpy(begin, &head, sizeof head);
  return {};
}

Error no_prepared(std::string_view what) {
  return make_error(ErrorCode::kInvalidData, "prepared bytes: {}: prepare the weights again with this release", what);
}

Result<Plan> read_plan(const void* memory, uint64_t bytes) {
  QD_TRY_STATUS(check_given(memory, "memory"));
  Head head;
  if (bytes < sizeof head || std::memcmp(memory, kMagic, sizeof kMagic) != 0) {
    return no_prepared(fmt::format("expected a head of {} bytes that begins with QDPREP01", sizeof head));
  }
  std::memcpy(&head, memory, sizeof head);
  if (head.bytes != bytes) return no_prepared(fmt::format("expected {} bytes, found {}", head.bytes, bytes));
  if (head.checksum != checksum_of(head, static_cast<const std::byte*>(memory) + sizeof head)) {
    return no_prepared("expected the checksum of their head, found another");
  }
  if (head.num_experts < 1 || head.num_parts < 1 || head.num_parts > 2 || head.matrix.n < 1 || head.matrix.k < 1) {
    return no_prepared("expected experts of one or two parts with sizes above 0, found others");
  }
  Plan plan;
  plan.kind = {
      true, static_cast<kernels::Numerics>(head.matrix.numerics), head.matrix.n, head.matrix.k, head.matrix.group_size,
      false};
  plan.num_experts = head.num_experts;
  plan.num_parts = head.num_parts;
  for (const bool is_hopper : {false, true}) {
    plan.is_hopper = is_hopper;
    const Head expected = plan.head();
    if (std::memcmp(&expected.matrix, &head.matrix, sizeof head.matrix) == 0 && expected.bytes == bytes) return plan;
  }
  return no_prepared(fmt::format("found {}, which this release does not read", moe::text_of(head.matrix)));
}

prepare::PreparedHopperW4 hopper_at(const Plan& plan, const std::byte* at) {
  PreparedHopperW4 matrix;
  matrix.numerics = plan.kind.numerics;
  matrix.tag = plan.tag();
  matrix.map = plan.map();
  const auto* first = reinterpret_cast<const uint8_t*>(at);
  matrix.weights.assign(first, first + matrix.map.num_bytes());
  return matrix;
}

Status unprepare_all(const void* memory, uint64_t bytes, uint32_t* codes, uint16_t* scales) {
  QD_TRY(const Plan plan, read_plan(memory, bytes));
  QD_TRY_STATUS(check_given(codes, "codes"));
  if (scales != nullptr && plan.is_vllm()) {
    return make_error(ErrorCode::kUnsupported,
                      "scales: those of vllm were rounded on the way and do not come back: ask for the codes alone");
  }
  for (int64_t e = 0; e < plan.num_experts; ++e) {
    const auto* at =
        static_cast<const std::byte*>(memory) + sizeof(Head) + static_cast<uint64_t>(e) * plan.expert_bytes();
    std::vector<prepare::CanonicalCopy> parts;
    if (plan.is_hopper) {
      parts = prepare::unprepare_hopper(hopper_at(plan, at), static_cast<int>(plan.num_parts));
    } else {
      const moe::ExpertMatrix matrix = moe::copy_matrix(plan.kind, {at, plan.expert_bytes()});
      parts.push_back(prepare::unprepare(std::get<prepare::PreparedW4>(matrix.weights)));
    }
    for (const prepare::CanonicalCopy& part : parts) {
      std::memcpy(codes, part.packed.data(), part.packed.size() * sizeof(uint32_t));
      codes += part.packed.size();
      if (scales == nullptr) continue;
      std::memcpy(scales, part.scales.data(), part.scales.size() * sizeof(uint16_t));
      scales += part.scales.size();
    }
  }
  return {};
}

}  // namespace
}  // namespace quadrille::api

using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::guarded;

extern "C" {

qd_result qd_host_prepared_bytes(const qd_weights_desc* desc, int32_t layout, uint64_t* bytes, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(bytes, "bytes"));
    *bytes = 0;
    QD_TRY(const auto plan, quadrille::api::plan_of(desc, layout));
    *bytes = plan.bytes();
    return {};
  });
}

qd_result qd_host_prepare(const qd_host* host, const qd_weights_desc* desc, int32_t layout, void* memory,
                          uint64_t bytes, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(host, "host"));
    QD_TRY_STATUS(check_given(memory, "memory"));
    QD_TRY_STATUS(host->place->check_process());
    QD_TRY(const auto plan, quadrille::api::plan_of(desc, layout));
    if (bytes != plan.bytes()) {
      return quadrille::make_error(quadrille::ErrorCode::kInvalidArgument, "memory: expected {} bytes, found {}",
                                   plan.bytes(), bytes);
    }
    return quadrille::api::write_all(host->place->pool.get(), *desc, plan, memory);
  });
}

qd_result qd_prepared_read_info(const void* memory, uint64_t bytes, qd_prepared_info* info, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(quadrille::api::check_struct(info, "qd_prepared_info"));
    QD_TRY(const auto plan, quadrille::api::read_plan(memory, bytes));
    info->layout = plan.is_hopper ? QD_LAYOUT_HOPPER : QD_LAYOUT_CPU;
    info->numerics = static_cast<int32_t>(plan.kind.numerics);
    info->num_experts = plan.num_experts;
    info->num_parts = plan.num_parts;
    info->part_n = plan.kind.n / plan.num_parts;
    info->k = plan.kind.k;
    info->group_size = plan.kind.group_size;
    info->bytes = plan.bytes();
    return {};
  });
}

qd_result qd_host_unprepare(const void* memory, uint64_t bytes, uint32_t* codes, uint16_t* scales, qd_error* error) {
  return guarded(error, [&] { return quadrille::api::unprepare_all(memory, bytes, codes, scales); });
}

}  // extern "C"
