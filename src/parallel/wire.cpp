// SPDX-License-Identifier: Apache-2.0
#include "parallel/wire.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "core/check.h"

namespace quadrille::parallel {
namespace {

// How long a broken data connection waits for the watch to say who was lost first: the control connections of a dead
// process close within milliseconds of its data connections.
constexpr std::chrono::milliseconds kVerdictWait{3000};

// What all communicators of a process share.
struct Process {
  int rank = 0;  // among all
  std::unique_ptr<Wire> wire;
  std::unique_ptr<Watch> watch;
  std::shared_ptr<LossState> loss;
};

class WireCommunicator final : public Communicator {
 public:
  WireCommunicator(std::shared_ptr<Process> process, std::vector<int> world, int rank, bool is_part)
      : Communicator(rank, static_cast<int>(world.size()), process->loss),
        process_(std::move(process)),
        world_(std::move(world)),
        left_(is_part) {}
  ~WireCommunicator() override {
    if (!left_) fail("its communicator was destroyed before leave()");
  }

  const char* body() const override { return process_->wire->name(); }
  void set_phase(Phase phase) override { process_->watch->set_phase(phase); }
  Phase phase() const override { return process_->watch->phase(); }
  void fail(const std::string& why) override {
    process_->watch->declare({process_->rank, process_->watch->phase(), why});
  }

 protected:
  Status exchange(Collective what, std::span<const Bytes> send, std::span<const WritableBytes> recv) override;
  Result<std::unique_ptr<Communicator>> make_part(std::vector<int> members) override;
  Status finish() override;

 private:
  std::shared_ptr<Process> process_;
  std::vector<int> world_;  // the number of each rank among all
  bool left_;
};

Status WireCommunicator::exchange(Collective what, std::span<const Bytes> send, std::span<const WritableBytes> recv) {
  if (loss()->any()) return loss()->error(collective_name(what), process_->rank);
  std::vector<Transfer> transfers;
  // Each rank begins with the one after itself, so that not all talk to rank 0 first.
  for (int step = 1; step < size(); ++step) {
    const auto p = static_cast<size_t>((rank() + step) % size());
    transfers.push_back({world_[p], send[p], recv[p]});
  }
  Status done = process_->wire->exchange(what, transfers, *loss());
  if (done || done.error().code != ErrorCode::kLostRank) {
    if (!done) fail(done.error().message);
    return done;
  }
  if (!loss()->wait_for(kVerdictWait)) fail(done.error().message);
  return loss()->error(collective_name(what), process_->rank);
}

Result<std::unique_ptr<Communicator>> WireCommunicator::make_part(std::vector<int> members) {
  const auto found = std::find(members.begin(), members.end(), rank());
  QD_CHECK(found != members.end(), "a rank splits into a part without itself");
  const int part_rank = static_cast<int>(found - members.begin());
  for (int& member : members) member = world_[static_cast<size_t>(member)];
  return std::unique_ptr<Communicator>(
      std::make_unique<WireCommunicator>(process_, std::move(members), part_rank, true));
}

Status WireCommunicator::finish() {
  // The farewell comes last: until then the watch still guards an ending that waits for others.
  QD_TRY_STATUS(process_->wire->finish());
  process_->watch->leave();
  left_ = true;
  return {};
}

}  // namespace

std::unique_ptr<Communicator> wire_communicator(int rank, int size, std::unique_ptr<Wire> wire,
                                                std::unique_ptr<Watch> watch, std::shared_ptr<LossState> loss) {
  auto process = std::make_shared<Process>();
  process->rank = rank;
  process->wire = std::move(wire);
  process->watch = std::move(watch);
  process->loss = std::move(loss);
  std::vector<int> world(static_cast<size_t>(size));
  std::iota(world.begin(), world.end(), 0);
  return std::make_unique<WireCommunicator>(std::move(process), std::move(world), rank, false);
}

}  // namespace quadrille::parallel
