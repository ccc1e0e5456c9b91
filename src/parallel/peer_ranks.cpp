// SPDX-License-Identifier: Apache-2.0
// One region a rank holds its inbox, the flags of the barrier and its own epochs. A lost rank rings the alarm of every
// other, from the thread that watches.
#include "parallel/peer_ranks.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "device/order.h"
#include "parallel/agree.h"

namespace quadrille::parallel {
namespace {

// Where a rank's region has what.
constexpr size_t kEpochBytes = static_cast<size_t>(kernels::kOneShotChunks) * sizeof(uint32_t);
constexpr size_t kFlagsAt = kEpochBytes;
constexpr size_t kFlagBytes = 256;  // [kMaxPeers], a line of their own
constexpr size_t kBarrierEpochAt = kFlagsAt + kFlagBytes;
constexpr size_t kInboxAt = kBarrierEpochAt + 256;
static_assert(kEpochBytes % 256 == 0 && kFlagBytes >= kernels::kMaxPeers * sizeof(uint32_t));

constexpr std::chrono::seconds kTrialPatience{20};

template <typename T>
T* part_of(std::byte* region, size_t at) {
  return reinterpret_cast<T*>(region + at);
}

uint32_t read(uint32_t& word) {
  return std::atomic_ref(word).load(std::memory_order_acquire);
}

}  // namespace

void PeerRanks::Alarm::ring() const {
  std::atomic_ref(get()->end).store(1, std::memory_order_release);
}

Result<std::unique_ptr<PeerRanks>> PeerRanks::create(Communicator& host, int ordinal, device::Stream stream,
                                                     const PeerOptions& options) {
  std::unique_ptr<PeerRanks> out(new PeerRanks(host, ordinal, stream, options));
  const auto prepare = [&]() -> Status {
    QD_TRY_STATUS(device::available(ordinal));
    QD_TRY_STATUS(device::use(ordinal));
    QD_TRY(out->table_, kernels::peer_table());
    QD_TRY_STATUS(out->table_->load());
    auto alarm = std::make_shared<Alarm>();
    QD_TRY(alarm->memory, device::PinnedBuffer::allocate(sizeof(kernels::PeerAlarm)));
    *alarm->get() = {};
    out->alarm_ = std::move(alarm);
    return {};
  };
  QD_TRY_STATUS(agree(host, prepare(), "preparing kernels between GPUs"));
  const size_t bytes = kInboxAt + kernels::one_shot_inbox_bytes(host.size());
  QD_TRY(out->memory_, PeerMemory::create(host, ordinal, bytes, stream));
  host.loss()->on_lost([weak = std::weak_ptr(out->alarm_)](const LostRank&) {
    if (const auto alarm = weak.lock()) alarm->ring();
  });
  QD_TRY_STATUS(agree(host, out->try_sum(), "a first sum over peer memory"));
  return out;
}

// Machines exist whose GPUs claim peer access and lose or change what is written.
Status PeerRanks::try_sum() {
  if (size() == 1) return {};
  constexpr size_t kCount = 1000;
  const std::chrono::nanoseconds patience = std::exchange(patience_, std::min(patience_, {kTrialPatience}));
  std::vector<float> data(kCount);
  for (size_t i = 0; i < kCount; ++i) data[i] = static_cast<float>(i) + static_cast<float>(rank()) * 1024.0f;
  QD_TRY(const device::Buffer buffer, device::Buffer::allocate(kCount * sizeof(float), stream_));
  QD_TRY_STATUS(device::copy_to_device(buffer.get(), data.data(), kCount * sizeof(float), stream_));
  for (int round = 0; round < 2; ++round) QD_TRY_STATUS(all_reduce(buffer.as<float>(), kCount, round == 1, stream_));
  QD_TRY_STATUS(barrier(stream_));
  std::vector<float> found(kCount);
  QD_TRY_STATUS(device::copy_to_host(found.data(), buffer.get(), kCount * sizeof(float), stream_));
  QD_TRY_STATUS(device::synchronize(stream_));
  patience_ = patience;
  QD_TRY_STATUS(check());
  const auto n = static_cast<float>(size());
  for (size_t i = 0; i < kCount; ++i) {
    const float expected = n * static_cast<float>(i) + 1024.0f * (n * (n - 1) / 2);  // small integers: exact
    if (found[i] == expected) continue;
    return make_error(ErrorCode::kUnsupported,
                      "peer memory: a sum over {} ranks came out as {} at {}, expected {}: this machine's GPUs do not "
                      "carry what they write to each other",
                      size(), found[i], i, expected);
  }
  return {};
}

kernels::PeerWait PeerRanks::wait() const {
  return {alarm_->get(), static_cast<uint64_t>(patience_.count())};
}

Status PeerRanks::all_reduce(float* data, size_t count, bool takes_max, device::Stream stream) {
  QD_TRY_STATUS(device::check_stream(stream));
  QD_TRY_STATUS(check());
  if (count > kMostFloats || (data == nullptr && count != 0)) {
    return make_error(ErrorCode::kInvalidArgument, "one-shot reduction: expected up to {} floats, found {} at {}",
                      kMostFloats, count, static_cast<const void*>(data));
  }
  if (count == 0 || size() == 1) return {};
  kernels::OneShotReduce p;
  p.num_ranks = size();
  p.rank = rank();
  p.takes_max = takes_max;
  p.count = static_cast<int64_t>(count);
  p.data = data;
  for (int r = 0; r < size(); ++r) p.inbox[r] = part_of<uint64_t>(memory_->at(r), kInboxAt);
  p.epochs = part_of<uint32_t>(memory_->at(rank()), 0);
  p.wait = wait();
  device::before_step("one_shot_reduce", stream);
  table_->one_shot_reduce(p, stream);
  return {};
}

Status PeerRanks::barrier(device::Stream stream) {
  QD_TRY_STATUS(device::check_stream(stream));
  QD_TRY_STATUS(check());
  if (size() == 1) return {};
  kernels::PeerBarrier p;
  p.num_ranks = size();
  p.rank = rank();
  for (int r = 0; r < size(); ++r) p.flags[r] = part_of<uint32_t>(memory_->at(r), kFlagsAt);
  p.epoch = part_of<uint32_t>(memory_->at(rank()), kBarrierEpochAt);
  p.wait = wait();
  device::before_step("peer_barrier", stream);
  table_->barrier(p, stream);
  return {};
}

Result<std::unique_ptr<PeerMemory>> PeerRanks::share(size_t bytes) {
  return PeerMemory::create(host_, ordinal_, bytes, stream_);
}

Status PeerRanks::check() const {
  if (host_.loss()->any()) return host_.loss()->error("work on the device", rank());
  kernels::PeerAlarm& alarm = *alarm_->get();
  const uint32_t gave_up = read(alarm.gave_up);
  if (gave_up == 0) return {};
  return make_error(ErrorCode::kIo, "rank {}: a kernel {} waiting for rank {} ({} s at most): its results are invalid",
                    rank(), gave_up == kernels::kPeerOutOfTime ? "gave up" : "was told to end while", alarm.waited_for,
                    std::chrono::duration_cast<std::chrono::seconds>(patience_).count());
}

Status PeerRanks::close() {
  const Status closed = memory_->close();
  if (closed) memory_.reset();
  return closed;
}

PeerRanks::~PeerRanks() {
  if (!memory_) return;
  alarm_->ring();  // nothing of this rank waits for peers any more; memory_ waits for the stream
  memory_.reset();
  // Unlocking host memory may wait for other ranks' kernels, and those for this rank: it stays locked.
  (void)new std::shared_ptr<Alarm>(alarm_);
}

}  // namespace quadrille::parallel
