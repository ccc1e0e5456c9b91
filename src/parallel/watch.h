// SPDX-License-Identifier: Apache-2.0
// The control connections of a process: one socket to every other rank and a thread that listens to them. A connection
// that ends without a farewell is a lost rank, whatever the main thread is blocked in. Used by the tcp and mpi bodies.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/loss.h"
#include "parallel/socket.h"

namespace quadrille::parallel {

class Watch {
 public:
  // peers[r] is connected to rank r; the entry of `rank` itself is not open.
  Watch(int rank, std::vector<Socket> peers, std::shared_ptr<LossState> loss);
  // Closes the connections: without leave() before, the others take this rank for lost.
  ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  // Tells the others, so that they can name it when this rank is lost. Nothing is sent when it does not change.
  void set_phase(Phase phase);
  Phase phase() const { return phase_.load(std::memory_order_relaxed); }
  // This rank failed by itself, or saw `lost` fail by other means: tells all and declares it here.
  void declare(const LostRank& lost);
  // Tells the others that the connection ends in order.
  void leave();

 private:
  struct Peer {
    Socket socket;
    std::vector<std::byte> unread;
    Phase phase = Phase::kStart;
    bool left = false;
    bool ended = false;
    std::string end_reason;
  };
  struct Message;

  void listen(const std::stop_token& stop);
  void read_from(Peer& peer);
  void take_messages(Peer& peer, std::vector<LostRank>& named);
  void judge(const std::vector<LostRank>& named);
  void tell_all(const Message& message, const std::string& text);

  int rank_;
  std::vector<Peer> peers_;  // read by the listening thread alone; sockets are written under sending_
  std::shared_ptr<LossState> loss_;
  std::atomic<Phase> phase_{Phase::kStart};
  std::mutex sending_;
  int stop_fd_ = -1;
  std::jthread thread_;
};

}  // namespace quadrille::parallel
