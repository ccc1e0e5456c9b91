// SPDX-License-Identifier: Apache-2.0
// The first words on every connection between ranks, and the door that sorts what comes in: strangers, silent
// connections and other runs are turned away without holding anybody up. Used by rendezvous.cpp.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>

#include "parallel/socket.h"

namespace quadrille::parallel {

// In the byte order of the machine: all ranks run the same build.
struct Hello {
  enum Purpose : uint32_t { kJoin = 1, kChannel = 2 };
  uint64_t magic = 0;
  uint64_t nonce = 0;
  uint32_t version = 0;
  Purpose purpose = kJoin;
  int32_t rank = 0;
  int32_t size = 0;
  int32_t channel = 0;  // kChannel
  int32_t port = 0;     // kJoin: where the sender listens
};
Hello make_hello(Hello::Purpose purpose, uint64_t nonce, int rank, int size);

// Rank 0's answers to kJoin: first that it is the right door, later the end of the meeting with text or table behind.
struct Answer {
  enum Kind : uint32_t { kWelcome = 1, kComplete, kRefused };
  uint64_t magic = 0;
  uint64_t nonce = 0;
  Kind kind = kWelcome;
  uint32_t error_code = 0;  // kRefused
  uint64_t bytes = 0;       // behind this header
};
Answer make_answer(Answer::Kind kind, uint64_t nonce);
bool is_answer(const Answer& answer, uint64_t nonce);
// Sends a refusal; whether it arrives is no concern of the sender.
void refuse(const Socket& socket, uint64_t nonce, const Error& error);

struct Visitor {
  Socket socket;
  Hello hello;
};

class Door {
 public:
  Door(const Listener& listener, uint64_t nonce) : listener_(listener), nonce_(nonce) {}
  // The next visitor of this run whose hello is complete; none at the deadline.
  Result<std::optional<Visitor>> next(Deadline deadline);

 private:
  struct Waiting {
    Visitor visitor;
    size_t received = 0;
    Deadline until;
  };
  enum class State { kIncomplete, kComplete, kGone };
  State read(Waiting& waiting) const;

  const Listener& listener_;
  uint64_t nonce_;
  std::list<Waiting> waiting_;
};

}  // namespace quadrille::parallel
