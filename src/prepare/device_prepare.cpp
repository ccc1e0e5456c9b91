// SPDX-License-Identifier: Apache-2.0
// Checks, sizes and the order of steps of the device preparation. The steps of a host source, round e in slot e % 2 (a
// round is experts_at_once experts):
//   prepare: [staging ready] ............ [wait copied e] [prepare e] [slot free] ...
//   copy:    [wait staging ready] [wait slot free of e - 2] [copy e] [copied] ...
#include "prepare/device_prepare.h"

#include <algorithm>
#include <array>

#include "layout/w4_hopper64.h"
#include "layout/w4_lanes16.h"

namespace quadrille::prepare {
namespace {

using device::HandOver;
using kernels::DevicePrepareW4;
using kernels::Numerics;
using kernels::W4Source;

constexpr int kSlots = 2;
constexpr int64_t kMaxSide = int64_t{1} << 24;  // rows of a part, k: beyond it a grid would not fit

constexpr int64_t align_up(int64_t bytes, int64_t alignment) {
  return layout::ceil_div(bytes, alignment) * alignment;
}

layout::W4Hopper64 map_of(const DeviceW4Source& s) {
  return {s.part_n * s.num_parts, s.k, s.group_size, s.numerics == Numerics::kVllm};
}

bool has_bias(const DeviceW4Source& s) {
  return s.experts[0].bias[0] != nullptr;
}

// Whether the channel scales are those of unsharded rows.
bool has_row_absmax(const DeviceW4Source& s) {
  return s.numerics == Numerics::kVllm && s.experts[0].row_absmax != nullptr;
}

W4PartLayout part_layout(const DeviceW4Source& s) {
  const auto rows = static_cast<size_t>(s.part_n), k = static_cast<size_t>(s.k);
  return {rows * (s.source == W4Source::kInt8 ? k : k / 2),
          rows * static_cast<size_t>(layout::num_groups(s.k, s.group_size)) * sizeof(uint16_t),
          has_bias(s) ? rows * sizeof(float) : 0, has_row_absmax(s) ? rows * sizeof(float) : 0};
}

// Of one expert in staging memory.
size_t expert_bytes(const DeviceW4Source& s) {
  return static_cast<size_t>(s.num_parts) * part_layout(s).bytes();
}

Status check_shape(const DeviceW4Source& s) {
  const int64_t g = s.group_size;
  if (g != 0 && g != 32 && g != 64 && g != 128) {
    return make_error(ErrorCode::kUnsupported,
                      "group size {} is not supported: legal are 32, 64, 128 and one scale a channel (0)", g);
  }
  if (s.part_n <= 0 || s.part_n % 8 != 0 || s.k <= 0 || s.k % 8 != 0 || s.part_n > kMaxSide || s.k > kMaxSide) {
    return make_error(ErrorCode::kUnsupported,
                      "a 4-bit matrix on the device needs n and k in multiples of 8 from 8 to {}, found [{}, {}]",
                      kMaxSide, s.part_n, s.k);
  }
  if (s.num_parts != 1 && s.num_parts != 2) {
    return make_error(ErrorCode::kInvalidArgument, "{} matrices an expert: the Hopper layout takes one, or gate and up",
                      s.num_parts);
  }
  const auto source = static_cast<int32_t>(s.source);
  if (source < 0 || source > static_cast<int32_t>(W4Source::kInt8)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "source dialect {} is unknown: legal are 0 (uint4b8), 1 (int4) and 2 (int8)", source);
  }
  if (s.experts.empty()) return make_error(ErrorCode::kInvalidArgument, "no expert to prepare");
  if (s.experts_at_once < 1 || s.experts_at_once > kernels::kMaxPrepareExperts) {
    return make_error(ErrorCode::kInvalidArgument, "{} experts at once: expected 1 to {}", s.experts_at_once,
                      kernels::kMaxPrepareExperts);
  }
  return {};
}

Status check_pointer(const void* pointer, uint64_t alignment, size_t expert, int part, const char* what) {
  if (pointer == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expert {}, matrix {}: {} is a null pointer", expert, part, what);
  }
  if (reinterpret_cast<uint64_t>(pointer) % alignment != 0) {
    return make_error(ErrorCode::kInvalidArgument, "expert {}, matrix {}: {} must lie at a multiple of {} bytes",
                      expert, part, what, alignment);
  }
  return {};
}

Status check_row_absmax(const DeviceW4Source& s, size_t e, uint64_t alignment) {
  if (s.numerics != Numerics::kVllm) return {};
  const void* pointer = s.experts[e].row_absmax;
  if ((pointer != nullptr) != has_row_absmax(s)) {
    return make_error(ErrorCode::kInvalidArgument, "expert {}: either every expert has a row_absmax or none", e);
  }
  if (pointer == nullptr) return {};
  if (s.num_parts != 1) {
    return make_error(ErrorCode::kInvalidArgument,
                      "expert {}: a row_absmax belongs to a row-parallel matrix alone, found {} matrices", e,
                      s.num_parts);
  }
  return check_pointer(pointer, alignment, e, 0, "row_absmax");
}

// Host memory is copied, so it may lie anywhere; device memory is read in words.
Status check_pointers(const DeviceW4Source& s) {
  const uint64_t word = s.on_host ? 1 : 4, half = s.on_host ? 1 : 2;
  for (size_t e = 0; e < s.experts.size(); ++e) {
    for (int part = 0; part < s.num_parts; ++part) {
      const DeviceW4Expert& expert = s.experts[e];
      QD_TRY_STATUS(check_pointer(expert.codes[part], word, e, part, "codes"));
      QD_TRY_STATUS(check_pointer(expert.scales[part], half, e, part, "scales"));
      if ((expert.bias[part] != nullptr) != has_bias(s)) {
        return make_error(ErrorCode::kInvalidArgument,
                          "expert {}, matrix {}: either every matrix of every expert has a bias or none", e, part);
      }
      if (has_bias(s)) QD_TRY_STATUS(check_pointer(expert.bias[part], word, e, part, "bias"));
    }
    QD_TRY_STATUS(check_row_absmax(s, e, word));
  }
  return {};
}

Status check_source(const DeviceW4Source& s) {
  QD_TRY_STATUS(check_shape(s));
  return check_pointers(s);
}

DeviceW4Sizes sizes_of(const DeviceW4Source& s) {
  const layout::W4Hopper64 map = map_of(s);
  const auto experts = static_cast<int64_t>(s.experts.size());
  DeviceW4Sizes sizes;
  sizes.expert_stride = align_up(map.num_bytes(), 128);
  sizes.weight_bytes = static_cast<size_t>(experts * sizes.expert_stride);
  const auto row_floats = static_cast<size_t>(experts * map.padded_n()) * sizeof(float);
  if (s.numerics == Numerics::kVllm) sizes.channel_scale_bytes = row_floats;
  if (has_bias(s)) sizes.bias_bytes = row_floats;
  if (s.on_host) sizes.staging_bytes = kSlots * static_cast<size_t>(s.experts_at_once) * expert_bytes(s);
  return sizes;
}

Status check_address(const void* pointer, uint64_t alignment, bool wanted, const char* what) {
  if (!wanted || (pointer != nullptr && reinterpret_cast<uint64_t>(pointer) % alignment == 0)) return {};
  return make_error(ErrorCode::kInvalidArgument, "{} must be device memory at a multiple of {} bytes, found {}", what,
                    alignment, pointer);
}

Status check_destination(const DeviceW4Source& s, const DeviceW4Destination& d, const void* staging,
                         const uint32_t* status) {
  QD_TRY_STATUS(check_address(d.weights, 128, true, "the prepared weights"));
  QD_TRY_STATUS(check_address(d.channel_scale, 4, s.numerics == Numerics::kVllm, "the channel scales of vllm"));
  QD_TRY_STATUS(check_address(d.bias, 4, has_bias(s), "the prepared bias"));
  QD_TRY_STATUS(check_address(staging, 256, s.on_host, "the staging memory of a host source"));
  return check_address(status, 4, true, "the status word");
}

Status check_streams(const DeviceW4Source& s, const PrepareStreams& streams) {
  QD_TRY_STATUS(device::check_stream(streams.prepare));
  bool complete = streams.done.handle != nullptr;
  if (s.on_host) {
    QD_TRY_STATUS(device::check_stream(streams.copy));
    complete = complete && streams.staging_ready.handle != nullptr;
    for (int slot = 0; slot < kSlots; ++slot) {
      complete =
          complete && streams.source_copied[slot].handle != nullptr && streams.staging_free[slot].handle != nullptr;
    }
  }
  if (complete) return {};
  return make_error(ErrorCode::kInvalidArgument,
                    "a preparation needs the event 'done', and from host memory the five events of its copies, too: "
                    "found a null handle");
}

// Everything but the experts' own pointers, for experts [first, first + count).
DevicePrepareW4 problem_of(const DeviceW4Source& s, const DeviceW4Destination& d, int64_t first, int64_t count,
                           uint32_t* status) {
  const layout::W4Hopper64 map = map_of(s);
  DevicePrepareW4 p;
  p.numerics = s.numerics;
  p.source = s.source;
  p.part_n = s.part_n;
  p.k = s.k;
  p.group_size = s.group_size;
  p.num_parts = s.num_parts;
  p.num_experts = static_cast<int32_t>(count);
  p.expert_stride = sizes_of(s).expert_stride;
  p.weights = d.weights + first * p.expert_stride;
  if (s.numerics == Numerics::kVllm) p.channel_scale = d.channel_scale + first * map.padded_n();
  if (has_bias(s)) p.prepared_bias = d.bias + first * map.padded_n();
  p.status = status;
  return p;
}

void set_expert(DevicePrepareW4& p, int64_t index, const DeviceW4Expert& expert) {
  for (int part = 0; part < p.num_parts; ++part) {
    p.codes[index][part] = expert.codes[part];
    p.scales[index][part] = expert.scales[part];
    p.bias[index][part] = expert.bias[part];
  }
  if (p.numerics == Numerics::kVllm) p.row_absmax[index] = expert.row_absmax;
}

void prepare_from_device(const kernels::DeviceTable& table, const DeviceW4Source& s, const DeviceW4Destination& d,
                         device::Stream stream, uint32_t* status) {
  const auto experts = static_cast<int64_t>(s.experts.size());
  for (int64_t first = 0; first < experts; first += kernels::kMaxPrepareExperts) {
    const int64_t count = std::min<int64_t>(kernels::kMaxPrepareExperts, experts - first);
    DevicePrepareW4 p = problem_of(s, d, first, count, status);
    for (int64_t i = 0; i < count; ++i) set_expert(p, i, s.experts[static_cast<size_t>(first + i)]);
    device::before_step("prepare.weights", stream);
    table.prepare_w4(p, stream);
  }
}

// Copies pieces into a slot; those that lie on the host as they do there go together, with the gap between.
class SlotCopies {
 public:
  explicit SlotCopies(device::Stream stream) : stream_(stream) {}

  Status add(uint8_t* to, const void* from, size_t bytes) {
    const auto* const host = static_cast<const uint8_t*>(from);
    if (bytes_ > 0 && to > to_ && host > from_ && host - from_ == to - to_) {
      bytes_ = static_cast<size_t>(to - to_) + bytes;
      return {};
    }
    QD_TRY_STATUS(flush());
    to_ = to;
    from_ = host;
    bytes_ = bytes;
    return {};
  }
  Status flush() { return bytes_ == 0 ? Status() : device::copy_to_device(to_, from_, bytes_, stream_); }

 private:
  device::Stream stream_;
  uint8_t* to_ = nullptr;
  const uint8_t* from_ = nullptr;
  size_t bytes_ = 0;
};

// One expert's pieces into memory at `slot`; the expert with the pointers there.
Result<DeviceW4Expert> copy_expert(const DeviceW4Source& s, const DeviceW4Expert& expert, uint8_t* slot,
                                   SlotCopies* copies) {
  const W4PartLayout layout = part_layout(s);
  DeviceW4Expert there;
  for (int part = 0; part < s.num_parts; ++part) {
    there.codes[part] = slot;
    QD_TRY_STATUS(copies->add(slot, expert.codes[part], layout.codes));
    there.scales[part] = slot + layout.scales_at();
    QD_TRY_STATUS(copies->add(slot + layout.scales_at(), expert.scales[part], layout.scales));
    if (layout.bias > 0) {
      there.bias[part] = slot + layout.bias_at();
      QD_TRY_STATUS(copies->add(slot + layout.bias_at(), expert.bias[part], layout.bias));
    }
    if (layout.row_absmax > 0) {
      there.row_absmax = slot + layout.row_absmax_at();
      QD_TRY_STATUS(copies->add(slot + layout.row_absmax_at(), expert.row_absmax, layout.row_absmax));
    }
    slot += layout.bytes();
  }
  return there;
}

Status prepare_from_host(const kernels::DeviceTable& table, const DeviceW4Source& s, const DeviceW4Destination& d,
                         uint8_t* staging, const PrepareStreams& streams, uint32_t* status) {
  const size_t bytes = expert_bytes(s);
  const auto at_once = static_cast<size_t>(s.experts_at_once);
  device::before_step("prepare.staging", streams.prepare);
  device::fresh_buffer(staging, kSlots * at_once * bytes, streams.prepare);
  QD_TRY_STATUS(device::hand_over(HandOver::kStagingReady, streams.staging_ready, streams.prepare, streams.copy));
  for (size_t first = 0, round = 0; first < s.experts.size(); first += at_once, ++round) {
    const size_t count = std::min(at_once, s.experts.size() - first), slot = round % kSlots;
    uint8_t* const memory = staging + slot * at_once * bytes;
    if (round >= kSlots) {
      QD_TRY_STATUS(device::enter(HandOver::kStagingFree, streams.staging_free[slot], streams.copy));
    }
    device::before_step("prepare.copy", streams.copy);
    DevicePrepareW4 p = problem_of(s, d, static_cast<int64_t>(first), static_cast<int64_t>(count), status);
    SlotCopies copies(streams.copy);
    for (size_t i = 0; i < count; ++i) {
      QD_TRY(const DeviceW4Expert expert, copy_expert(s, s.experts[first + i], memory + i * bytes, &copies));
      set_expert(p, static_cast<int64_t>(i), expert);
    }
    QD_TRY_STATUS(copies.flush());
    QD_TRY_STATUS(
        device::hand_over(HandOver::kSourceCopied, streams.source_copied[slot], streams.copy, streams.prepare));
    device::before_step("prepare.weights", streams.prepare);
    table.prepare_w4(p, streams.prepare);
    // Left here and entered two rounds later: an event recorded there would wait for the round between, too.
    QD_TRY_STATUS(device::leave(HandOver::kStagingFree, streams.staging_free[slot], streams.prepare));
  }
  return {};
}

}  // namespace

Result<DeviceW4Sizes> device_w4_sizes(const DeviceW4Source& source) {
  QD_TRY_STATUS(check_source(source));
  return sizes_of(source);
}

Status prepare_on_device(const kernels::DeviceTable& table, const DeviceW4Source& source,
                         const DeviceW4Destination& destination, void* staging, const PrepareStreams& streams,
                         uint32_t* status) {
  QD_TRY_STATUS(check_source(source));
  QD_TRY_STATUS(check_destination(source, destination, staging, status));
  QD_TRY_STATUS(check_streams(source, streams));
  if (source.on_host) {
    QD_TRY_STATUS(prepare_from_host(table, source, destination, static_cast<uint8_t*>(staging), streams, status));
  } else {
    prepare_from_device(table, source, destination, streams.prepare, status);
  }
  return device::leave(HandOver::kWeightsPrepared, streams.done, streams.prepare);
}

}  // namespace quadrille::prepare
