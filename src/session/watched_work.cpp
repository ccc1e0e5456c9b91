// SPDX-License-Identifier: Apache-2.0
#include "session/watched_work.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <exception>
#include <new>
#include <system_error>
#include <utility>

namespace quadrille::session {

void WatchedWork::update(const std::string& what, uint64_t done, uint64_t total) {
  const std::lock_guard lock(mutex_);
  what_ = what;
  done_ = done;
  total_ = total;
}

void WatchedWork::finish(Status status) {
  const std::lock_guard lock(mutex_);
  if (!status_) status_ = std::move(status);
  finished_.notify_all();
}

Status WatchedWork::wait(const Watch& watch) {
  constexpr std::chrono::milliseconds kBetween{50};
  std::unique_lock lock(mutex_);
  do {
    if (!watch) continue;
    const std::string what = what_;
    const uint64_t done = done_, total = total_;
    lock.unlock();
    if (!watch(what, done, total)) cancel_ = true;
    lock.lock();
  } while (!finished_.wait_for(lock, kBetween, [this] { return status_.has_value(); }));
  const Status status = *status_;
  lock.unlock();
  if (watch && !what_.empty()) (void)watch(what_, done_, total_);  // the last word; nobody writes them now
  return status;
}

std::jthread thread_without_signals(std::function<void()> body) {
  sigset_t blocked, before;
  sigfillset(&blocked);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) sigdelset(&blocked, own);
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  struct Restore {
    const sigset_t& mask;
    ~Restore() { pthread_sigmask(SIG_SETMASK, &mask, nullptr); }
  } const restore{before};
  return std::jthread(std::move(body));
}

Status without_exceptions(const std::function<Status()>& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "no host memory left");
  } catch (const std::exception& failure) {
    return make_error(ErrorCode::kInvalidData, "an internal error: {}", failure.what());
  }
}

Status run_watched(const Watch& watch, const std::function<Status(WatchedWork&)>& work) {
  WatchedWork watched;
  const std::jthread thread =
      thread_without_signals([&] { watched.finish(without_exceptions([&] { return work(watched); })); });
  return watched.wait(watch);
}

}  // namespace quadrille::session
