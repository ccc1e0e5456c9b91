// SPDX-License-Identifier: Apache-2.0
// The wire over MPI: opens libquadrille_mpi.so at run time. Called by open.cpp.
#pragma once

#include <memory>
#include <string>

#include "parallel/wire.h"

namespace quadrille::parallel {

struct MpiWire {
  int rank = 0;
  int size = 1;
  std::unique_ptr<Wire> wire;
};

// Joins the MPI job of this process. `module`: the path of libquadrille_mpi.so, or "" to look beside the program, in
// ../lib of it and where the system looks. Errors: kUnsupported when the module or MPI itself is not there, kIo when
// MPI does not start.
Result<MpiWire> open_mpi_wire(const std::string& module);

}  // namespace quadrille::parallel
