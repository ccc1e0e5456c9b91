// SPDX-License-Identifier: Apache-2.0
// Every collective on data that each rank can compute for all, compared bit by bit with plain loops; the digest of all
// results is the same for every body. Used by the unit tests (threads) and by the process tests (tcp, mpi).
#pragma once

#include <cstdint>
#include <string>

#include "parallel/communicator.h"

namespace quadrille::multi {

// Runs all collectives over sizes 0, 1, odd, around the borders of the algorithms, and large. "" or the first
// difference: collective, size, index, both bit patterns. `digest` covers every result that all ranks share.
std::string check_collectives(parallel::Communicator& communicator, uint64_t& digest);

}  // namespace quadrille::multi
