// SPDX-License-Identifier: Apache-2.0
// From a launch to a communicator: the one call of the program when its ranks are processes. Threads of one process
// come from thread_group.h.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "parallel/launch.h"
#include "parallel/rendezvous.h"

namespace quadrille::parallel {

struct OpenOptions {
  std::chrono::milliseconds timeout{60'000};  // for all ranks to come
  std::string mpi_module;                     // path of libquadrille_mpi.so; "" looks for it
  // Called once, from a thread of its own, when a rank is lost: also when the main thread is blocked elsewhere. The
  // program prints the line and ends the process here.
  LossState::Callback on_lost;
};

// One rank: `single`. mpirun: `mpi`, with control connections beside it. torchrun's variables and Slurm: `tcp`.
Result<std::unique_ptr<Communicator>> open_communicator(const Launch& launch, const OpenOptions& options);

// `tcp` at a meeting point that the caller carried to the ranks (open_meeting on rank 0, MeetingPoint::parse on the
// others, which pass no listener).
Result<std::unique_ptr<Communicator>> open_tcp(const MeetingPoint& point, Membership self, Listener listener,
                                               const OpenOptions& options);

}  // namespace quadrille::parallel
