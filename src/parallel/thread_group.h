// SPDX-License-Identifier: Apache-2.0
// Ranks that are threads of one process: collectives over shared memory. Small messages pass through a mailbox of the
// sender (one meeting a collective), large ones are read where they lie.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "parallel/communicator.h"

namespace quadrille::parallel {

// One communicator a rank, to be handed to the thread of that rank. size >= 1.
std::vector<std::unique_ptr<Communicator>> thread_communicators(int size);

// Runs body(communicator) of rank 0 on this thread, of every other on a thread of its own, and waits for all. An error
// or exception of one rank fails its communicator, so that the others come back with kLostRank. The error returned is
// that of the rank that failed first, as run_rank() words it. `on_lost` (may be empty) is called once, from the failing
// thread, and may end the process: nothing else ends a rank that is blocked outside of collectives.
Status run_rank_threads(int size, const std::function<Status(Communicator&)>& body,
                        const LossState::Callback& on_lost = {});

}  // namespace quadrille::parallel
