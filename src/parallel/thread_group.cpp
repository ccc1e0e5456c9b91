// SPDX-License-Identifier: Apache-2.0
// A collective: every rank posts what it sends, all meet, each takes its part; where memory of a rank was read in place
// all meet again. Posts alternate between two slots: a slot is written again only after the meeting of the collective
// between, which every reader of the first has left.
#include "parallel/thread_group.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <system_error>
#include <thread>
#include <utility>

#include "core/check.h"
#include "parallel/run_rank.h"
#include "parallel/thread_meeting.h"

namespace quadrille::parallel {
namespace {

constexpr size_t kMailboxBytes = 64 * 1024;

struct Post {
  Collective what = Collective::kBarrier;
  bool in_place = false;  // `to` points into memory of the caller
  std::vector<Bytes> to;  // for each rank
  std::vector<std::byte> mailbox;
};

// What the threads of one communicator share.
struct Group {
  Group(std::vector<int> world_ranks, std::shared_ptr<LossState> shared_loss,
        std::shared_ptr<std::vector<std::atomic<Phase>>> shared_phases)
      : world(std::move(world_ranks)),
        loss(std::move(shared_loss)),
        phases(std::move(shared_phases)),
        meeting(static_cast<int>(world.size()), *loss),
        posts(world.size()) {}

  std::vector<int> world;  // the number of each rank among all ranks
  std::shared_ptr<LossState> loss;
  std::shared_ptr<std::vector<std::atomic<Phase>>> phases;  // of all ranks
  ThreadMeeting meeting;
  std::vector<std::array<Post, 2>> posts;
};

std::shared_ptr<Group> make_group(std::vector<int> world, const std::shared_ptr<LossState>& loss,
                                  const std::shared_ptr<std::vector<std::atomic<Phase>>>& phases) {
  auto group = std::make_shared<Group>(std::move(world), loss, phases);
  loss->on_lost([weak = std::weak_ptr(group)](const LostRank&) {
    if (const auto alive = weak.lock()) alive->meeting.wake();
  });
  return group;
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<Group> group, bool is_part)
      : Communicator(rank, static_cast<int>(group->world.size()), group->loss),
        group_(std::move(group)),
        own_(static_cast<size_t>(rank)),
        left_(is_part) {}
  ~ThreadCommunicator() override {
    if (!left_) fail("its communicator was destroyed before leave()");
  }

  const char* body() const override { return "threads"; }
  void set_phase(Phase phase) override { phase_of(own_).store(phase, std::memory_order_relaxed); }
  Phase phase() const override { return phase_of(own_).load(std::memory_order_relaxed); }
  void fail(const std::string& why) override { loss()->declare({group_->world[own_], phase(), why}); }

 protected:
  Status exchange(Collective what, std::span<const Bytes> send, std::span<const WritableBytes> recv) override {
    return run(what, send, recv, [&](std::span<const std::byte* const> views) {
      for (size_t p = 0; p < recv.size(); ++p) {
        if (!recv[p].empty()) std::memcpy(recv[p].data(), views[p], recv[p].size());
      }
    });
  }
  Status view_all(Collective what, Bytes mine, const UseViews& use) override {
    const std::vector<Bytes> send(group_->world.size(), mine);
    std::vector<WritableBytes> sizes(send.size(), WritableBytes(static_cast<std::byte*>(nullptr), mine.size()));
    return run(what, send, sizes, use);
  }
  bool views_in_place() const override { return true; }
  Result<std::unique_ptr<Communicator>> make_part(std::vector<int> members) override;
  Status finish() override {
    left_ = true;
    return {};
  }

 private:
  std::atomic<Phase>& phase_of(size_t rank) const {
    return (*group_->phases)[static_cast<size_t>(group_->world[rank])];
  }
  void post(Collective what, std::span<const Bytes> send);
  // Whether what the others posted fits `recv` (sizes only).
  Status check_posts(Collective what, std::span<const WritableBytes> recv);
  Status run(Collective what, std::span<const Bytes> send, std::span<const WritableBytes> recv, const UseViews& use);
  Status take(Collective what, std::span<const WritableBytes> recv, const UseViews& use);
  Post& slot(size_t rank) { return group_->posts[rank][round_ % 2]; }

  std::shared_ptr<Group> group_;
  size_t own_;
  bool left_;
  uint64_t round_ = 0;
};

void ThreadCommunicator::post(Collective what, std::span<const Bytes> send) {
  Post& mine = slot(own_);
  mine.what = what;
  mine.to.assign(send.begin(), send.end());
  size_t total = 0;
  for (const Bytes& part : send) total += part.size();
  mine.in_place = total > kMailboxBytes;
  if (mine.in_place) return;
  mine.mailbox.resize(kMailboxBytes);
  size_t used = 0;
  Bytes before;
  Bytes copy;
  for (Bytes& part : mine.to) {
    if (part.empty()) continue;
    if (part.data() != before.data() || part.size() != before.size()) {  // a gather gives all ranks the same bytes
      std::memcpy(mine.mailbox.data() + used, part.data(), part.size());
      copy = {mine.mailbox.data() + used, part.size()};
      before = part;
      used += part.size();
    }
    part = copy;
  }
}

Status ThreadCommunicator::check_posts(Collective what, std::span<const WritableBytes> recv) {
  for (size_t p = 0; p < recv.size(); ++p) {
    const Post& post = slot(p);
    if (post.what == what && (p == own_ || post.to[own_].size() == recv[p].size())) continue;
    const std::string text =
        fmt::format("ranks are out of step: rank {} is in {} and sends {} bytes here, rank {} is in {} and expects {}",
                    group_->world[p], collective_name(post.what), post.to[own_].size(), group_->world[own_],
                    collective_name(what), recv[p].size());
    fail(text);
    return make_error(ErrorCode::kInvalidData, "{}", text);
  }
  return {};
}

Status ThreadCommunicator::take(Collective what, std::span<const WritableBytes> recv, const UseViews& use) {
  const int own = rank();
  if (!group_->meeting.meet(own) || !group_->meeting.begin_reading(own)) {
    return loss()->error(collective_name(what), group_->world[own_]);
  }
  Status fits = check_posts(what, recv);
  bool in_place = false;
  if (fits) {
    std::vector<const std::byte*> views(recv.size());
    for (size_t p = 0; p < recv.size(); ++p) {
      views[p] = slot(p).to[own_].data();
      in_place = in_place || slot(p).in_place;
    }
    use(views);
  }
  group_->meeting.end_reading(own);
  if (!fits) return fits;
  if (in_place && !group_->meeting.meet(own)) return loss()->error(collective_name(what), group_->world[own_]);
  return {};
}

Status ThreadCommunicator::run(Collective what, std::span<const Bytes> send, std::span<const WritableBytes> recv,
                               const UseViews& use) {
  if (loss()->any()) return loss()->error(collective_name(what), group_->world[own_]);
  post(what, send);
  Status done = take(what, recv, use);
  if (!done) group_->meeting.wait_for_readers();
  ++round_;
  return done;
}

Result<std::unique_ptr<Communicator>> ThreadCommunicator::make_part(std::vector<int> members) {
  const auto found = std::find(members.begin(), members.end(), rank());
  QD_CHECK(found != members.end(), "a rank splits into a part without itself");
  std::shared_ptr<Group> part;
  if (found == members.begin()) {
    std::vector<int> world;
    for (const int member : members) world.push_back(group_->world[static_cast<size_t>(member)]);
    part = make_group(std::move(world), group_->loss, group_->phases);
  }
  // The first member shows where its pointer lies; it stays until all have met again.
  std::shared_ptr<Group>* mine = &part;
  std::vector<std::shared_ptr<Group>*> all(static_cast<size_t>(size()));
  QD_TRY_STATUS(all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all))));
  std::shared_ptr<Group> taken = *all[static_cast<size_t>(members.front())];
  QD_TRY_STATUS(barrier());
  return std::unique_ptr<Communicator>(
      std::make_unique<ThreadCommunicator>(static_cast<int>(found - members.begin()), std::move(taken), true));
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> thread_communicators(int size) {
  QD_CHECK(size >= 1, "a group has at least one rank");
  std::vector<int> world(static_cast<size_t>(size));
  std::iota(world.begin(), world.end(), 0);
  auto phases = std::make_shared<std::vector<std::atomic<Phase>>>(world.size());
  const auto group = make_group(world, std::make_shared<LossState>(), phases);
  std::vector<std::unique_ptr<Communicator>> all;
  for (const int rank : world) all.push_back(std::make_unique<ThreadCommunicator>(rank, group, false));
  return all;
}

Status run_rank_threads(int size, const std::function<Status(Communicator&)>& body,
                        const LossState::Callback& on_lost) {
  auto communicators = thread_communicators(size);
  const std::shared_ptr<LossState> loss = communicators[0]->loss();
  if (on_lost) loss->on_lost(on_lost);
  std::vector<Status> done(communicators.size());
  const auto live = [&](size_t r) {
    done[r] = run_rank(*communicators[r], {body, {}, {}});
    // After a failure the others are told already; after leave() nothing is left to tell.
    communicators[r].reset();
  };
  {
    std::vector<std::jthread> threads;
    try {
      for (size_t r = 1; r < communicators.size(); ++r) threads.emplace_back(live, r);
    } catch (const std::system_error& refused) {
      const size_t r = threads.size() + 1;
      done[r] = make_error(ErrorCode::kCapacity, "no thread for rank {} of {}: {}", r, size, refused.what());
      communicators[r]->fail(done[r].error().message);
    }
    // On the thread of the caller: signals come to the main thread, and interrupt what rank 0 reads.
    live(0);
  }
  if (const auto lost = loss->get(); lost && !done[static_cast<size_t>(lost->rank)]) {
    return done[static_cast<size_t>(lost->rank)];
  }
  for (const Status& status : done) QD_TRY_STATUS(status);
  return {};
}

}  // namespace quadrille::parallel
