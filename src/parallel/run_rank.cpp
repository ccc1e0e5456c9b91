// SPDX-License-Identifier: Apache-2.0
#include "parallel/run_rank.h"

#include <exception>
#include <new>

namespace quadrille::parallel {
namespace {

Status without_exceptions(Communicator& communicator, const RankRun& run) {
  try {
    return run.body(communicator);
  } catch (const std::bad_alloc&) {
    return make_error(ErrorCode::kCapacity, "out of memory; free some, or ask for less");
  } catch (const std::exception& thrown) {
    return make_error(ErrorCode::kInvalidData, "internal error (please report it): {}", thrown.what());
  } catch (...) {
    return make_error(ErrorCode::kInvalidData, "internal error of unknown kind (please report it)");
  }
}

}  // namespace

Status run_rank(Communicator& communicator, const RankRun& run) {
  Status done = without_exceptions(communicator, run);
  const std::string where = fmt::format("rank {} in phase {}", communicator.rank(), phase_name(communicator.phase()));
  if (done || (run.is_shared && run.is_shared(done.error()))) {
    const Status left = communicator.leave();
    if (left) return done ? done : Status(done.error().in(where));
    done = left;
  }
  if (run.before_fail) run.before_fail();
  communicator.fail(done.error().message);
  // Begins with the rank that was lost, as the line of a program that its watch ends: which comes first is a race.
  if (done.error().code == ErrorCode::kLostRank) return done;
  return done.error().in(where);
}

}  // namespace quadrille::parallel
