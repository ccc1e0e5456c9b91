// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes: a wire moves bytes between them (tcp.cpp, mpi.cpp), a watch notices lost ones, and
// WireCommunicator makes the communicator of both.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/watch.h"

namespace quadrille::parallel {

// Both directions between this rank and one other; zero bytes are a message too.
struct Transfer {
  int peer = 0;
  Bytes send;
  WritableBytes recv;
};

class Wire {
 public:
  virtual ~Wire() = default;
  virtual const char* name() const = 0;
  // Returns when everything is sent and received. Errors: kLostRank when `loss` says so or a peer cannot be reached any
  // more; kInvalidData when a peer is in another collective or sends another size.
  virtual Status exchange(Collective what, std::span<const Transfer> transfers, const LossState& loss) = 0;
  // After the last exchange of all ranks.
  virtual Status finish() { return {}; }
};

// The communicator of all ranks of a run.
std::unique_ptr<Communicator> wire_communicator(int rank, int size, std::unique_ptr<Wire> wire,
                                                std::unique_ptr<Watch> watch, std::shared_ptr<LossState> loss);

// channel[r] is connected to rank r; the entry of `rank` is not open.
std::unique_ptr<Wire> tcp_wire(int rank, std::vector<Socket> channel);

}  // namespace quadrille::parallel
