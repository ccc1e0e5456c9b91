// SPDX-License-Identifier: Apache-2.0
#include "parallel/watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"

namespace quadrille::parallel {

// On the wire, in the byte order of the machine (all ranks run the same build), then `text_bytes` of text.
struct Watch::Message {
  enum Kind : uint8_t { kPhase = 1, kFarewell, kLost };
  Kind kind = kPhase;
  uint8_t phase = 0;  // kPhase: of the sender; kLost: of the lost rank
  uint16_t text_bytes = 0;
  int32_t rank = 0;  // kLost
};

namespace {

constexpr size_t kMostText = 1000;

Phase phase_of(uint8_t value) {
  return static_cast<Phase>(std::min<int>(value, kNumPhases - 1));
}

}  // namespace

Watch::Watch(int rank, std::vector<Socket> peers, std::shared_ptr<LossState> loss)
    : rank_(rank), loss_(std::move(loss)), stop_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  QD_CHECK(stop_fd_ >= 0, "no event descriptor: the limit of open files is reached");
  for (Socket& socket : peers) {
    Peer& peer = peers_.emplace_back();
    peer.socket = std::move(socket);
  }
  // The thread takes no signals: a handler of the program never runs on it, so it notices losses while one does.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::jthread([this](const std::stop_token& stop) { listen(stop); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watch::~Watch() {
  thread_.request_stop();
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(stop_fd_, &one, sizeof one);
  thread_.join();
  ::close(stop_fd_);
}

void Watch::set_phase(Phase phase) {
  if (phase_.exchange(phase, std::memory_order_relaxed) == phase) return;
  tell_all({Message::kPhase, static_cast<uint8_t>(phase), 0, rank_}, {});
}

void Watch::declare(const LostRank& lost) {
  if (loss_->any()) return;
  // Told before it is declared: a callback may end this process, and then the others know the first cause.
  const std::string text = lost.why.substr(0, kMostText);
  tell_all({Message::kLost, static_cast<uint8_t>(lost.phase), static_cast<uint16_t>(text.size()), lost.rank}, text);
  loss_->declare(lost);
}

void Watch::leave() {
  tell_all({Message::kFarewell, 0, 0, rank_}, {});
}

// Messages are far smaller than a socket's buffer; where one does not fit, its reader is gone or stuck and is not
// waited for.
void Watch::tell_all(const Message& message, const std::string& text) {
  std::vector<std::byte> bytes(sizeof message + text.size());
  std::memcpy(bytes.data(), &message, sizeof message);
  std::memcpy(bytes.data() + sizeof message, text.data(), text.size());
  const std::scoped_lock lock(sending_);
  for (const Peer& peer : peers_) {
    if (peer.socket.open()) (void)::send(peer.socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
}

void Watch::listen(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    std::vector<pollfd> polled{{stop_fd_, POLLIN, 0}};
    std::vector<Peer*> who{nullptr};
    for (Peer& peer : peers_) {
      if (!peer.socket.open() || peer.ended) continue;
      polled.push_back({peer.socket.fd(), POLLIN, 0});
      who.push_back(&peer);
    }
    if (::poll(polled.data(), polled.size(), -1) < 0 && errno != EINTR) return;
    if (stop.stop_requested()) return;
    for (size_t i = 1; i < who.size(); ++i) {
      if (polled[i].revents != 0) read_from(*who[i]);
    }
    std::vector<LostRank> named;
    for (size_t i = 1; i < who.size(); ++i) take_messages(*who[i], named);
    judge(named);
  }
}

void Watch::read_from(Peer& peer) {
  std::byte buffer[4096];
  while (true) {
    const ssize_t got = ::recv(peer.socket.fd(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (got > 0) {
      peer.unread.insert(peer.unread.end(), buffer, buffer + got);
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    peer.ended = true;
    peer.end_reason = got == 0 ? "its control connection was closed"
                               : fmt::format("its control connection failed ({})", std::strerror(errno));
    return;
  }
}

void Watch::take_messages(Peer& peer, std::vector<LostRank>& named) {
  size_t taken = 0;
  while (peer.unread.size() - taken >= sizeof(Message)) {
    Message message;
    std::memcpy(&message, peer.unread.data() + taken, sizeof message);
    if (peer.unread.size() - taken < sizeof message + message.text_bytes) break;
    const auto* text = reinterpret_cast<const char*>(peer.unread.data() + taken + sizeof message);
    taken += sizeof message + message.text_bytes;
    if (message.kind == Message::kPhase) peer.phase = phase_of(message.phase);
    if (message.kind == Message::kFarewell) peer.left = true;
    if (message.kind == Message::kLost) {
      named.push_back({message.rank, phase_of(message.phase), std::string(text, message.text_bytes)});
    }
  }
  peer.unread.erase(peer.unread.begin(), peer.unread.begin() + static_cast<std::ptrdiff_t>(taken));
}

// What another rank says comes first: it closed because it lost somebody, who is the one to name.
void Watch::judge(const std::vector<LostRank>& named) {
  if (!named.empty()) {
    declare(named.front());
    return;
  }
  for (size_t r = 0; r < peers_.size(); ++r) {
    const Peer& peer = peers_[r];
    if (peer.ended && !peer.left) declare({static_cast<int>(r), peer.phase, peer.end_reason});
  }
}

}  // namespace quadrille::parallel
