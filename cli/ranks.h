// SPDX-License-Identifier: Apache-2.0
// The ranks of a command: threads of this process (--tp M, --ep N), or processes that mpirun, torchrun or Slurm
// started with the same command. Every rank runs the command's body over its shard; rank 0 alone writes.
#pragma once

#include <functional>
#include <string>

#include "cli/args.h"
#include "cli/console.h"
#include "core/result.h"
#include "parallel/communicator.h"

namespace quadrille::cli {

// Adds --tp, --split-scales and --rank-timeout.
void add_rank_options(CLI::App& app, ModelOptions& options);

// Runs `body` on every rank of this process, with a console (mute on ranks above 0) and options whose `ranks` is the
// rank's communicator (null: one rank) and whose threads are its share of the cores of the machine (in a launch: where
// --threads is not given). Errors: those of the body, in front the rank and its phase; kInvalidArgument when --tp times
// --ep is not the number of processes of the launch; those of the rendezvous. In a launch of several processes a lost
// rank ends this process with a line that names it, also while the body is blocked; so does a stop signal that the body
// does not answer in time. With threads the process ends at the latest five seconds after the first rank failed.
using RankBody = std::function<Status(Console& console, const ModelOptions& options)>;
Status run_on_ranks(Console& console, const ModelOptions& options, const RankBody& body);

// Whether any rank says yes: every rank calls it at the same place, so that all stop at the same step. Where one says
// so because of a signal, interrupted() is true on all from then on. True also when the ranks cannot be asked any more:
// the next collective then says why. One rank: `mine`.
bool any_rank(parallel::Communicator* ranks, bool mine);

// What rank 0 reads, on every rank; its error too. One rank: read().
Result<std::string> text_of_rank_0(parallel::Communicator* ranks, const std::function<Result<std::string>()>& read);

}  // namespace quadrille::cli
