// SPDX-License-Identifier: Apache-2.0
// TCP sockets with deadlines: what the rendezvous, the control connections and the tcp body are made of. No call waits
// past its deadline, none raises SIGPIPE.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/result.h"

namespace quadrille::parallel {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void close();

 private:
  int fd_ = -1;
};

// A connection that is non-blocking, without Nagle's delay, and that notices a dead machine in about 10 s. Tries every
// address of the name once. kIo with the reason.
Result<Socket> connect_to(const std::string& host, int port, Deadline deadline);

// Listens on `host` ("" for every address of this machine) and `port` (0: any free one). Errors: kIo, "in use" by name.
class Listener {
 public:
  static Result<Listener> open(const std::string& host, int port);
  int port() const { return port_; }
  int fd() const { return socket_.fd(); }
  // A new connection as of connect_to(); not open() when none waits.
  Result<Socket> accept() const;

 private:
  Socket socket_;
  int port_ = 0;
};

// All of it before the deadline, or kIo: what was awaited from whom is the caller's to say (Error::in).
Status send_all(const Socket& socket, std::span<const std::byte> bytes, Deadline deadline);
Status receive_all(const Socket& socket, std::span<std::byte> bytes, Deadline deadline);
// Waits until the descriptor is readable (or has ended); false at the deadline.
bool wait_readable(int fd, Deadline deadline);

// The numeric address of the other and of this end.
std::string peer_address(const Socket& socket);
std::string own_address(const Socket& socket);
// Numeric IPv4 addresses of this machine that other machines may reach, at most four.
std::vector<std::string> reachable_addresses();
std::string host_name();
// "localhost", 127.*, ::1
bool is_loopback(const std::string& host);

}  // namespace quadrille::parallel
