// SPDX-License-Identifier: Apache-2.0
// The parts of all ranks are copied side by side; each rank's stream waits for the copies of the others and reduces for
// itself, with the kernel that NCCL's ranks use.
#include "device/loopback_ranks.h"

#include <exception>
#include <thread>

namespace quadrille::testing {

class LoopbackRanks::Rank final : public parallel::DeviceCommunicator {
 public:
  Rank(LoopbackRanks* all, int rank, int size) : DeviceCommunicator(rank, size), all_(all) {}
  const char* body() const override { return "loopback"; }
  Status all_reduce_sum(float* data, size_t count, device::Stream stream) override {
    return all_->reduce(rank(), data, count, false, stream);
  }
  Status all_reduce_max(float* data, size_t count, device::Stream stream) override {
    return all_->reduce(rank(), data, count, true, stream);
  }
  Status all_gather(const void*, size_t, void*, device::Stream) override { return refused(); }
  Status all_gather_v(const void*, std::span<const size_t>, void*, device::Stream) override { return refused(); }
  Status reduce_scatter_sum(const float*, std::span<const size_t>, float*, device::Stream) override {
    return refused();
  }
  Status all_to_all_v(const void*, std::span<const size_t>, void*, std::span<const size_t>, device::Stream) override {
    return refused();
  }
  Status broadcast(void*, size_t, int, device::Stream) override { return refused(); }
  Status barrier(device::Stream) override { return refused(); }
  Status check() override { return {}; }

 private:
  static Status refused() { return make_error(ErrorCode::kUnsupported, "ranks on one GPU reduce and do nothing else"); }
  LoopbackRanks* all_;
};

LoopbackRanks::LoopbackRanks(int size, size_t most_floats, device::Stream stream)
    : table_(*must(kernels::device_table())), most_floats_((most_floats / 64 + 1) * 64) {
  for (int r = 0; r < size; ++r) {
    ranks_.push_back(std::make_unique<Rank>(this, r, size));
    streams_.push_back(must(device::OwnedStream::create()));
    begins_.push_back(must(device::OwnedEvent::create()));
    ends_.push_back(must(device::OwnedEvent::create()));
  }
  for (Round& round : rounds_) {
    round.parts = must(device::Buffer::allocate(static_cast<size_t>(size) * most_floats_ * sizeof(float), stream));
    for (int r = 0; r < size; ++r) {
      round.came.push_back(must(device::OwnedEvent::create()));
      round.left.push_back(must(device::OwnedEvent::create()));
    }
  }
  must(device::synchronize(stream));
}

LoopbackRanks::~LoopbackRanks() {
  for (const device::OwnedStream& stream : streams_) (void)device::synchronize(stream.get()).ok();
}

parallel::DeviceCommunicator& LoopbackRanks::communicator(int rank) {
  return *ranks_[static_cast<size_t>(rank)];
}

void LoopbackRanks::pass_turn(std::unique_lock<std::mutex>&, int from) {
  for (int step = 1; step <= size(); ++step) {
    const int next = (from + step) % size();
    if (done_[static_cast<size_t>(next)]) continue;
    turn_ = next;
    break;
  }
  turned_.notify_all();
}

void LoopbackRanks::await_turn(std::unique_lock<std::mutex>& lock, int rank) {
  turned_.wait(lock, [&] { return turn_ == rank; });
}

Status LoopbackRanks::reduce(int rank, float* data, size_t count, bool takes_max, device::Stream stream) {
  if (count > most_floats_) {
    return make_error(ErrorCode::kInvalidArgument, "{} floats, expected at most {}", count, most_floats_);
  }
  const auto own = static_cast<size_t>(rank);
  const int64_t number = ++number_[own];
  Round& round = rounds_[static_cast<size_t>(number % 2)];
  // The parts of two collectives ago have been read; those of an earlier run have, since its origin went on.
  if (number > 2) {
    for (const device::OwnedEvent& left : round.left) QD_TRY_STATUS(device::wait(stream, left.get()));
  }
  QD_TRY_STATUS(
      device::copy_on_device(round.parts.as<float>() + own * most_floats_, data, count * sizeof(float), stream));
  QD_TRY_STATUS(device::record(round.came[own].get(), stream));
  {
    std::unique_lock lock(mutex_);
    pass_turn(lock, rank);
    await_turn(lock, rank);
    for (size_t r = 0; r < number_.size(); ++r) {
      if (number_[r] >= number) continue;
      return make_error(ErrorCode::kLostRank, "rank {} did not come to collective {}", r, number);
    }
  }
  for (const device::OwnedEvent& came : round.came) QD_TRY_STATUS(device::wait(stream, came.get()));
  table_.reduce_ranks({round.parts.as<float>(), static_cast<int64_t>(most_floats_), size(), takes_max,
                       static_cast<int64_t>(count), data},
                      stream);
  return device::record(round.left[own].get(), stream);
}

Status LoopbackRanks::run_threads(const std::function<Status(int)>& body) {
  turn_ = 0;
  done_.assign(ranks_.size(), false);
  number_.assign(ranks_.size(), 0);
  std::vector<Status> results(ranks_.size());
  {
    std::vector<std::jthread> threads;
    for (int r = 0; r < size(); ++r) {
      threads.emplace_back([&, r] {
        std::unique_lock lock(mutex_);
        await_turn(lock, r);
        lock.unlock();
        Status& result = results[static_cast<size_t>(r)];
        try {
          result = device::use(0);
          if (result) result = body(r);
        } catch (const std::exception& failure) {
          result = make_error(ErrorCode::kIo, "{}", failure.what());
        }
        lock.lock();
        done_[static_cast<size_t>(r)] = true;
        pass_turn(lock, r);
      });
    }
  }
  for (const Status& result : results) QD_TRY_STATUS(result);
  return {};
}

Status LoopbackRanks::run(device::Stream origin, const std::function<Status(int)>& body) {
  for (int r = 0; r < size(); ++r) {
    const auto own = static_cast<size_t>(r);
    QD_TRY_STATUS(device::record(begins_[own].get(), origin));
    QD_TRY_STATUS(device::wait(stream(r), begins_[own].get()));
  }
  const Status ran = run_threads(body);
  for (int r = 0; r < size(); ++r) {
    const auto own = static_cast<size_t>(r);
    QD_TRY_STATUS(device::record(ends_[own].get(), stream(r)));
    QD_TRY_STATUS(device::wait(origin, ends_[own].get()));
  }
  return ran;
}

}  // namespace quadrille::testing
