// SPDX-License-Identifier: Apache-2.0
#include "parallel/greeting.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace quadrille::parallel {
namespace {

constexpr uint64_t kMagic = 0x51d21e5a9c0b7f31ULL;
constexpr uint32_t kVersion = 1;
constexpr std::chrono::seconds kPatience{5};  // with a connection that says nothing

}  // namespace

Hello make_hello(Hello::Purpose purpose, uint64_t nonce, int rank, int size) {
  Hello hello;
  hello.magic = kMagic;
  hello.nonce = nonce;
  hello.version = kVersion;
  hello.purpose = purpose;
  hello.rank = rank;
  hello.size = size;
  return hello;
}

Answer make_answer(Answer::Kind kind, uint64_t nonce) {
  Answer answer;
  answer.magic = kMagic;
  answer.nonce = nonce;
  answer.kind = kind;
  return answer;
}

bool is_answer(const Answer& answer, uint64_t nonce) {
  return answer.magic == kMagic && answer.nonce == nonce;
}

void refuse(const Socket& socket, uint64_t nonce, const Error& error) {
  Answer answer = make_answer(Answer::kRefused, nonce);
  answer.error_code = static_cast<uint32_t>(error.code);
  answer.bytes = error.message.size();
  const Deadline deadline = Clock::now() + std::chrono::seconds(1);
  if (!send_all(socket, std::as_bytes(std::span(&answer, 1)), deadline)) return;
  (void)send_all(socket, std::as_bytes(std::span(error.message)), deadline).ok();
}

Door::State Door::read(Waiting& waiting) const {
  auto bytes = std::as_writable_bytes(std::span(&waiting.visitor.hello, 1)).subspan(waiting.received);
  const ssize_t got = ::recv(waiting.visitor.socket.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return State::kGone;
  if (got > 0) waiting.received += static_cast<size_t>(got);
  if (waiting.received < sizeof(Hello)) return Clock::now() > waiting.until ? State::kGone : State::kIncomplete;
  const Hello& hello = waiting.visitor.hello;
  if (hello.magic != kMagic) return State::kGone;
  if (hello.version == kVersion && hello.nonce == nonce_) return State::kComplete;
  refuse(waiting.visitor.socket, hello.nonce,
         make_error(ErrorCode::kIo,
                    "another run, or another version of the program, is meeting at this port: expected version {}, "
                    "found {}; give each run a port of its own",
                    kVersion, hello.version));
  return State::kGone;
}

Result<std::optional<Visitor>> Door::next(Deadline deadline) {
  while (true) {
    for (auto waiting = waiting_.begin(); waiting != waiting_.end();) {
      const State state = read(*waiting);
      if (state == State::kIncomplete) {
        ++waiting;
        continue;
      }
      std::optional<Visitor> visitor;
      if (state == State::kComplete) visitor = std::move(waiting->visitor);
      waiting = waiting_.erase(waiting);
      if (visitor) return visitor;
    }
    if (Clock::now() >= deadline) return std::optional<Visitor>();
    QD_TRY(Socket socket, listener_.accept());
    if (socket.open()) {
      waiting_.push_back({{std::move(socket), {}}, 0, Clock::now() + kPatience});
      continue;
    }
    std::vector<pollfd> polled{{listener_.fd(), POLLIN, 0}};
    for (const Waiting& waiting : waiting_) polled.push_back({waiting.visitor.socket.fd(), POLLIN, 0});
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    (void)::poll(polled.data(), polled.size(), static_cast<int>(std::clamp<decltype(left)>(left + 1, 0, 500)));
  }
}

}  // namespace quadrille::parallel
