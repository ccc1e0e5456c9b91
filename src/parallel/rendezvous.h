// SPDX-License-Identifier: Apache-2.0
// How processes find each other: rank 0 listens at a meeting point, the others come to it, and everybody is then
// connected to everybody. Called by open.h, and by whoever carries a meeting point to the ranks by own means.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/result.h"
#include "parallel/socket.h"

namespace quadrille::parallel {

// Where the ranks meet. As text: "host:port/nonce", which the creator hands to the other ranks.
struct MeetingPoint {
  std::string host;
  int port = 0;
  int num_ports = 1;   // rank 0 takes the first free port of [port, port + num_ports)
  uint64_t nonce = 0;  // of this run; a process of another run is turned away

  std::string text() const;
  // kInvalidArgument: what a meeting point looks like.
  static Result<MeetingPoint> parse(const std::string& text);
};

// A meeting point that exists: rank 0 creates it, hands point.text() to the others, and gives `listener` to meet().
struct OpenMeeting {
  MeetingPoint point;
  Listener listener;
};
// `host`: the name under which the others reach this machine; a loopback name listens on this machine only.
Result<OpenMeeting> open_meeting(const std::string& host);

struct Membership {
  int rank = 0;
  int size = 1;
};

// channels[c][r]: a connection of its own to rank r (the entry of this rank is not open).
using Mesh = std::vector<std::vector<Socket>>;

// Connects all ranks, `num_channels` connections a pair. Rank 0 passes the listener of open_meeting, or none and
// listens at `point` itself. Errors: kIo with the port that is in use, or the ranks that did not come before the
// timeout; kInvalidArgument on every rank for different world sizes, two processes with one rank, a rank outside.
Result<Mesh> meet(const MeetingPoint& point, Membership self, Listener listener, int num_channels,
                  std::chrono::milliseconds timeout);

// Where one rank listens: addresses to try in turn.
struct RankAddress {
  std::vector<std::string> hosts;
  int port = 0;
};
// The last step of meet() alone, where the addresses are known already (MPI carried them).
Result<Mesh> connect_ranks(Membership self, const std::vector<RankAddress>& addresses, const Listener& listener,
                           uint64_t nonce, int num_channels, Deadline deadline);

uint64_t random_nonce();

}  // namespace quadrille::parallel
