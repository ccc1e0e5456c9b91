// SPDX-License-Identifier: Apache-2.0
#include "parallel/loss.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "core/check.h"

namespace quadrille::parallel {

const char* phase_name(Phase phase) {
  switch (phase) {
    case Phase::kStart:
      return "start";
    case Phase::kLoad:
      return "load";
    case Phase::kPrefill:
      return "prefill";
    case Phase::kDecode:
      return "decode";
  }
  return "unknown";
}

std::string LostRank::text() const {
  return fmt::format("rank {} was lost in phase {}: {}", rank, phase_name(phase), why);
}

LossState::LossState() : wake_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  QD_CHECK(wake_fd_ >= 0, "no event descriptor: the limit of open files is reached");
}

LossState::~LossState() {
  ::close(wake_fd_);
}

bool LossState::declare(const LostRank& lost) {
  std::vector<Callback> callbacks;
  {
    const std::scoped_lock lock(mutex_);
    if (lost_) return false;
    lost_ = lost;
    callbacks = std::move(callbacks_);
    callbacks_.clear();
    flag_.store(true, std::memory_order_seq_cst);
  }
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_fd_, &one, sizeof one);
  declared_.notify_all();
  for (const Callback& callback : callbacks) callback(lost);
  return true;
}

std::optional<LostRank> LossState::get() const {
  const std::scoped_lock lock(mutex_);
  return lost_;
}

std::optional<LostRank> LossState::wait_for(std::chrono::milliseconds most) const {
  std::unique_lock lock(mutex_);
  declared_.wait_for(lock, most, [&] { return lost_.has_value(); });
  return lost_;
}

void LossState::on_lost(Callback callback) {
  std::unique_lock lock(mutex_);
  if (!lost_) {
    callbacks_.push_back(std::move(callback));
    return;
  }
  const LostRank lost = *lost_;
  lock.unlock();
  callback(lost);
}

Error LossState::error(const char* what, int own) const {
  const std::optional<LostRank> lost = get();
  return make_error(ErrorCode::kLostRank, "{}; {} on rank {} has no result: end this process and start all ranks again",
                    lost ? lost->text() : "a rank was lost", what, own);
}

}  // namespace quadrille::parallel
