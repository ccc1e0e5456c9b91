// SPDX-License-Identifier: Apache-2.0
// Sums between GPUs in rank order: NCCL moves slices, a kernel of ours adds them, NCCL spreads the result. NCCL's own
// sum is used between two ranks only, where there is one order.
#include "parallel/nccl.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "core/check.h"
#include "device/device.h"
#include "device/order.h"
#include "kernels/api/device_table.h"
#include "parallel/agree.h"
#include "parallel/nccl_library.h"
#include "parallel/ordered_reduce.h"

namespace quadrille::parallel {
namespace {

using std::chrono::milliseconds;

// Up to here everybody gets everything and adds it alone: one message time instead of two.
constexpr size_t kOneRoundBytes = 256 * 1024;
constexpr size_t kLine = 16;  // floats: parts in scratch memory stay aligned
constexpr milliseconds kLook{20};
constexpr std::chrono::seconds kAbortPatience{5};

Error nccl_error(const NcclLibrary& nccl, int code, const char* what) {
  return make_error(ErrorCode::kIo, "{}: NCCL says '{}'; NCCL_DEBUG=INFO makes it say more", what,
                    nccl.GetErrorString(code));
}

// The part of the object that the watching thread may touch.
struct Guarded {
  std::timed_mutex mutex;  // held while work is enqueued
  NcclLibrary nccl{};
  NcclHandle handle = nullptr;

  // Ends kernels that wait for a rank that will never come. An enqueue that is itself stuck is not waited for long.
  void end_work() {
    const bool locked = mutex.try_lock_for(kAbortPatience);
    if (NcclHandle aborted = std::exchange(handle, nullptr)) (void)nccl.CommAbort(aborted);
    if (locked) mutex.unlock();
  }
};

class NcclCommunicator final : public DeviceCommunicator {
 public:
  NcclCommunicator(const Communicator& host, std::shared_ptr<Guarded> guarded, const kernels::DeviceTable& table,
                   device::Buffer scratch, std::unique_ptr<PeerRanks> peers)
      : DeviceCommunicator(host.rank(), host.size()),
        loss_(host.loss()),
        guarded_(std::move(guarded)),
        nccl_(guarded_->nccl),
        table_(table),
        scratch_(std::move(scratch)),
        peers_(std::move(peers)) {
    loss_->on_lost([weak = std::weak_ptr(guarded_)](const LostRank&) {
      if (const auto alive = weak.lock()) alive->end_work();
    });
  }
  ~NcclCommunicator() override {
    const std::scoped_lock lock(guarded_->mutex);
    if (NcclHandle handle = std::exchange(guarded_->handle, nullptr)) {
      (void)(loss_->any() ? nccl_.CommAbort(handle) : nccl_.CommDestroy(handle));
    }
  }
  const char* body() const override { return "nccl"; }

  Status all_reduce_sum(float* data, size_t count, device::Stream stream) override;
  Status all_reduce_max(float* data, size_t count, device::Stream stream) override;
  Status all_gather(const void* mine, size_t bytes, void* all, device::Stream stream) override;
  Status all_gather_v(const void* mine, std::span<const size_t> bytes, void* all, device::Stream stream) override;
  Status reduce_scatter_sum(const float* in, std::span<const size_t> counts, float* out,
                            device::Stream stream) override;
  Status all_to_all_v(const void* send, std::span<const size_t> send_bytes, void* recv,
                      std::span<const size_t> recv_bytes, device::Stream stream) override;
  Status broadcast(void* data, size_t bytes, int root, device::Stream stream) override;
  Status barrier(device::Stream stream) override;
  Status check() override;
  Status close() override { return peers_ ? peers_->close() : Status(); }
  PeerRanks* peers() override { return peers_.get(); }

 private:
  // Runs `enqueue` (which returns an NCCL code) with the handle, if no rank is lost.
  Status enqueue(const char* what, device::Stream stream, const std::function<int(NcclHandle)>& call);
  Status one_round(float* data, size_t count, bool takes_max, device::Stream stream);
  Status reduce_slices(const float* in, std::span<const size_t> offset, bool takes_max, float* out,
                       device::Stream stream);
  Status all_reduce(float* data, size_t count, bool takes_max, device::Stream stream);
  bool one_shot(size_t count) const { return peers_ && count <= PeerRanks::kMostFloats; }
  size_t own() const { return static_cast<size_t>(rank()); }
  size_t num() const { return static_cast<size_t>(size()); }
  float* scratch() const { return scratch_.as<float>(); }
  size_t scratch_floats() const { return scratch_.size_bytes() / sizeof(float); }

  std::shared_ptr<LossState> loss_;
  std::shared_ptr<Guarded> guarded_;
  const NcclLibrary& nccl_;
  const kernels::DeviceTable& table_;
  device::Buffer scratch_;
  std::unique_ptr<PeerRanks> peers_;  // null: everything over NCCL
};

Status NcclCommunicator::enqueue(const char* what, device::Stream stream, const std::function<int(NcclHandle)>& call) {
  QD_TRY_STATUS(device::check_stream(stream));
  device::before_step(what, stream);
  const std::scoped_lock lock(guarded_->mutex);
  if (loss_->any() || guarded_->handle == nullptr) return loss_->error(what, rank());
  const int code = call(guarded_->handle);
  if (code == kNcclSuccess) return {};
  return nccl_error(nccl_, code, what);
}

Status NcclCommunicator::check() {
  const std::scoped_lock lock(guarded_->mutex);
  if (loss_->any() || guarded_->handle == nullptr) return loss_->error("work on the device", rank());
  int error = kNcclSuccess;
  const int code = nccl_.CommGetAsyncError(guarded_->handle, &error);
  if (code != kNcclSuccess) error = code;
  if (error != kNcclSuccess) return nccl_error(nccl_, error, "work on the device");
  return peers_ ? peers_->check() : Status();
}

// All sends and receives of one exchange as a group, so that they run at once. The first error code counts.
class Group {
 public:
  explicit Group(const NcclLibrary& nccl) : nccl_(nccl), code_(nccl.GroupStart()) {}
  void send(const void* data, size_t count, int type, size_t peer, NcclHandle handle, device::Stream stream) {
    if (count != 0) keep(nccl_.Send(data, count, type, static_cast<int>(peer), handle, stream.handle));
  }
  void receive(void* data, size_t count, int type, size_t peer, NcclHandle handle, device::Stream stream) {
    if (count != 0) keep(nccl_.Recv(data, count, type, static_cast<int>(peer), handle, stream.handle));
  }
  int end() {
    keep(nccl_.GroupEnd());
    return code_;
  }

 private:
  void keep(int code) {
    if (code_ == kNcclSuccess) code_ = code;
  }
  const NcclLibrary& nccl_;
  int code_;
};

Status NcclCommunicator::one_round(float* data, size_t count, bool takes_max, device::Stream stream) {
  QD_TRY_STATUS(enqueue("all_reduce", stream, [&](NcclHandle handle) {
    return nccl_.AllGather(data, scratch(), count, kNcclFloat, handle, stream.handle);
  }));
  const auto length = static_cast<int64_t>(count);
  table_.reduce_ranks({scratch(), length, size(), takes_max, length, data}, stream);
  return {};
}

// out = this rank's slice [offset[rank], offset[rank + 1]) of the reduction, in steps that fit the scratch memory;
// every rank takes as many steps as the longest slice needs.
Status NcclCommunicator::reduce_slices(const float* in, std::span<const size_t> offset, bool takes_max, float* out,
                                       device::Stream stream) {
  const size_t pitch = scratch_floats() / num() / kLine * kLine;
  size_t longest = 0;
  for (size_t p = 0; p < num(); ++p) longest = std::max(longest, offset[p + 1] - offset[p]);
  for (size_t done = 0; done < longest; done += pitch) {
    const auto step_of = [&](size_t p) {
      const size_t length = offset[p + 1] - offset[p];
      return length > done ? std::min(pitch, length - done) : 0;
    };
    const size_t count = step_of(own());
    QD_TRY_STATUS(enqueue("reduce_scatter", stream, [&](NcclHandle handle) {
      Group group(nccl_);
      for (size_t p = 0; p < num(); ++p) {
        group.send(in + offset[p] + done, step_of(p), kNcclFloat, p, handle, stream);
        group.receive(scratch() + p * pitch, count, kNcclFloat, p, handle, stream);
      }
      return group.end();
    }));
    table_.reduce_ranks(
        {scratch(), static_cast<int64_t>(pitch), size(), takes_max, static_cast<int64_t>(count), out + done}, stream);
  }
  return {};
}

Status NcclCommunicator::all_reduce(float* data, size_t count, bool takes_max, device::Stream stream) {
  if (count == 0) return {};
  if (one_shot(count)) return peers_->all_reduce(data, count, takes_max, stream);
  if (count * sizeof(float) <= kOneRoundBytes && count * num() <= scratch_floats()) {
    return one_round(data, count, takes_max, stream);
  }
  const std::vector<size_t> offset = even_slices(count, size());
  QD_TRY_STATUS(reduce_slices(data, offset, takes_max, data + offset[own()], stream));
  std::vector<size_t> bytes(num());
  for (size_t p = 0; p < num(); ++p) bytes[p] = (offset[p + 1] - offset[p]) * sizeof(float);
  return all_gather_v(data + offset[own()], bytes, data, stream);
}

Status NcclCommunicator::all_reduce_sum(float* data, size_t count, device::Stream stream) {
  if (size() > 2 || count == 0 || one_shot(count)) return all_reduce(data, count, false, stream);
  return enqueue("all_reduce", stream, [&](NcclHandle handle) {
    return nccl_.AllReduce(data, data, count, kNcclFloat, kNcclSum, handle, stream.handle);
  });
}

Status NcclCommunicator::all_reduce_max(float* data, size_t count, device::Stream stream) {
  return all_reduce(data, count, true, stream);
}

Status NcclCommunicator::all_gather(const void* mine, size_t bytes, void* all, device::Stream stream) {
  if (bytes == 0) return {};
  return enqueue("all_gather", stream, [&](NcclHandle handle) {
    return nccl_.AllGather(mine, all, bytes, kNcclUint8, handle, stream.handle);
  });
}

Status NcclCommunicator::all_gather_v(const void* mine, std::span<const size_t> bytes, void* all,
                                      device::Stream stream) {
  if (bytes.size() != num()) {
    return make_error(ErrorCode::kInvalidArgument, "all_gather_v on rank {}: {} counts, expected one a rank: {}",
                      rank(), bytes.size(), size());
  }
  const bool even = std::all_of(bytes.begin(), bytes.end(), [&](size_t b) { return b == bytes[0]; });
  if (even) return all_gather(mine, bytes[0], all, stream);
  auto* to = static_cast<std::byte*>(all);
  const size_t own_place = std::accumulate(bytes.begin(), bytes.begin() + rank(), size_t{0});
  if (to + own_place != mine && bytes[own()] != 0) {
    QD_TRY_STATUS(device::copy_on_device(to + own_place, mine, bytes[own()], stream));
  }
  return enqueue("all_gather", stream, [&](NcclHandle handle) {
    Group group(nccl_);
    size_t at = 0;
    for (size_t p = 0; p < num(); at += bytes[p++]) {
      if (p == own()) continue;
      group.send(mine, bytes[own()], kNcclUint8, p, handle, stream);
      group.receive(to + at, bytes[p], kNcclUint8, p, handle, stream);
    }
    return group.end();
  });
}

Status NcclCommunicator::reduce_scatter_sum(const float* in, std::span<const size_t> counts, float* out,
                                            device::Stream stream) {
  if (counts.size() != num()) {
    return make_error(ErrorCode::kInvalidArgument, "reduce_scatter_sum on rank {}: {} counts, expected one a rank: {}",
                      rank(), counts.size(), size());
  }
  std::vector<size_t> offset(num() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offset.begin() + 1);
  return reduce_slices(in, offset, false, out, stream);
}

Status NcclCommunicator::all_to_all_v(const void* send, std::span<const size_t> send_bytes, void* recv,
                                      std::span<const size_t> recv_bytes, device::Stream stream) {
  if (send_bytes.size() != num() || recv_bytes.size() != num() || send_bytes[own()] != recv_bytes[own()]) {
    return make_error(ErrorCode::kInvalidArgument,
                      "all_to_all_v on rank {}: {} and {} counts, expected one a rank ({}), and equal ones to and from "
                      "itself",
                      rank(), send_bytes.size(), recv_bytes.size(), size());
  }
  return enqueue("all_to_all", stream, [&](NcclHandle handle) {
    Group group(nccl_);
    const auto* from = static_cast<const std::byte*>(send);
    auto* to = static_cast<std::byte*>(recv);
    for (size_t p = 0; p < num(); ++p) {
      group.send(from, send_bytes[p], kNcclUint8, p, handle, stream);
      group.receive(to, recv_bytes[p], kNcclUint8, p, handle, stream);
      from += send_bytes[p];
      to += recv_bytes[p];
    }
    return group.end();
  });
}

Status NcclCommunicator::broadcast(void* data, size_t bytes, int root, device::Stream stream) {
  if (root < 0 || root >= size()) {
    return make_error(ErrorCode::kInvalidArgument, "broadcast on rank {}: root {} is none of the ranks 0..{}", rank(),
                      root, size() - 1);
  }
  if (bytes == 0) return {};
  return enqueue("broadcast", stream, [&](NcclHandle handle) {
    return nccl_.Broadcast(data, data, bytes, kNcclUint8, root, handle, stream.handle);
  });
}

Status NcclCommunicator::barrier(device::Stream stream) {
  if (peers_) return peers_->barrier(stream);
  return enqueue("barrier", stream, [&](NcclHandle handle) {
    return nccl_.AllGather(scratch() + own(), scratch(), 1, kNcclFloat, handle, stream.handle);
  });
}

// --- Beginning
// --------------------------------------------------------------------------------------------------------

// ncclCommInitRank waits for all ranks inside of NCCL: it gets a thread of its own, which is left behind when a rank is
// lost meanwhile, so that this rank comes back with the error.
struct Joining {
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  Status status;
  NcclHandle handle = nullptr;
};

Result<NcclHandle> join(const NcclLibrary& nccl, const NcclId& id, const Communicator& host, int ordinal) {
  auto joining = std::make_shared<Joining>();
  std::thread([joining, nccl, id, ordinal, size = host.size(), rank = host.rank()] {
    NcclHandle handle = nullptr;
    Status status = device::use(ordinal);
    if (status) {
      const int code = nccl.CommInitRank(&handle, size, id, rank);
      if (code != kNcclSuccess) status = nccl_error(nccl, code, "ncclCommInitRank");
    }
    const std::scoped_lock lock(joining->mutex);
    joining->status = std::move(status);
    joining->handle = handle;
    joining->done = true;
    joining->ended.notify_all();
  }).detach();
  std::unique_lock lock(joining->mutex);
  while (!joining->done) {
    joining->ended.wait_for(lock, kLook, [&] { return joining->done; });
    if (!joining->done && host.loss()->any()) return host.loss()->error("ncclCommInitRank", host.rank());
  }
  QD_TRY_STATUS(joining->status);
  return joining->handle;
}

// What this rank brings, before all agree to begin.
struct Parts {
  NcclLibrary nccl{};
  const kernels::DeviceTable* table = nullptr;
  device::Buffer scratch;
};

Result<Parts> gather_parts(const Communicator& host, int ordinal, device::Stream stream, const NcclOptions& options) {
  Parts parts;
  QD_TRY_STATUS(device::available(ordinal));
  QD_TRY_STATUS(device::use(ordinal));
  QD_TRY(parts.table, kernels::device_table());
  QD_TRY(parts.nccl, open_nccl(options.library));
  const size_t least = static_cast<size_t>(host.size()) * 1024;
  QD_TRY(parts.scratch, device::Buffer::allocate(std::max(options.scratch_bytes, least), stream));
  return parts;
}

Result<NcclId> share_id(Communicator& host, const NcclLibrary& nccl) {
  NcclId id{};
  Status made;
  if (host.rank() == 0) {
    if (const int code = nccl.GetUniqueId(&id); code != kNcclSuccess) made = nccl_error(nccl, code, "ncclGetUniqueId");
  }
  QD_TRY_STATUS(agree(host, made, "making an id for NCCL"));
  QD_TRY_STATUS(host.broadcast(std::as_writable_bytes(std::span(&id, 1)), 0));
  return id;
}

// Null where the ranks are to speak over NCCL alone. Every rank comes to the same end: the errors are those of all.
Result<std::unique_ptr<PeerRanks>> reach_peers(Communicator& host, int ordinal, device::Stream stream,
                                               const NcclOptions& options) {
  if (options.small == SmallReduction::kNccl) return std::unique_ptr<PeerRanks>();
  auto peers = PeerRanks::create(host, ordinal, stream, options.peers);
  if (peers || options.small == SmallReduction::kOneShot) return peers;
  if (host.loss()->any()) return peers.error();
  return std::unique_ptr<PeerRanks>();
}

}  // namespace

Result<std::unique_ptr<DeviceCommunicator>> nccl_communicator(Communicator& host, int ordinal, device::Stream stream,
                                                              const NcclOptions& options) {
  if (host.size() == 1) return single_device_communicator();
  auto parts = gather_parts(host, ordinal, stream, options);
  QD_TRY_STATUS(agree(host, parts ? Status() : Status(parts.error()), "opening NCCL and a GPU"));
  QD_TRY(const NcclId id, share_id(host, parts->nccl));
  auto handle = join(parts->nccl, id, host, ordinal);
  QD_TRY_STATUS(agree(host, handle ? Status() : Status(handle.error()), "joining the NCCL communicator"));
  QD_TRY(auto peers, reach_peers(host, ordinal, stream, options));
  auto guarded = std::make_shared<Guarded>();
  guarded->nccl = parts->nccl;
  guarded->handle = *handle;
  return std::unique_ptr<DeviceCommunicator>(std::make_unique<NcclCommunicator>(
      host, std::move(guarded), *parts->table, std::move(parts->scratch), std::move(peers)));
}

}  // namespace quadrille::parallel
