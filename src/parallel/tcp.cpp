// SPDX-License-Identifier: Apache-2.0
// A wire of one TCP connection a pair of ranks. Every message has a header that says which collective it belongs to, so
// ranks that are out of step say so instead of taking each other's bytes.
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/check.h"
#include "parallel/wire.h"

namespace quadrille::parallel {
namespace {

// Tries before the thread sleeps in poll(): a message on one machine takes 10 to 20 us.
constexpr int kTries = 100;
constexpr size_t kMostAtOnce = size_t{1} << 20;

struct Header {
  uint32_t what = 0;
  uint32_t count = 0;  // messages before this one in this direction
  uint64_t bytes = 0;
};

// The state of one transfer.
struct Flow {
  const Transfer* transfer = nullptr;
  int fd = -1;
  Header out, expected, in;
  size_t sent = 0, received = 0;  // bytes, the header first
  bool sending() const { return sent < sizeof(Header) + transfer->send.size(); }
  bool receiving() const { return received < sizeof(Header) + transfer->recv.size(); }
};

class TcpWire final : public Wire {
 public:
  TcpWire(int rank, std::vector<Socket> channel)
      : rank_(rank), channel_(std::move(channel)), sent_(channel_.size(), 0), received_(channel_.size(), 0) {}
  const char* name() const override { return "tcp"; }
  Status exchange(Collective what, std::span<const Transfer> transfers, const LossState& loss) override;

 private:
  Result<bool> push(Flow& flow) const;
  Result<bool> pull(Flow& flow) const;
  Status check(const Flow& flow) const;
  Error broken(const Flow& flow, const char* how) const;

  int rank_;
  std::vector<Socket> channel_;
  std::vector<uint32_t> sent_, received_;  // messages, by peer
};

Error TcpWire::broken(const Flow& flow, const char* how) const {
  return make_error(ErrorCode::kLostRank, "the data connection from rank {} to rank {} is broken ({})", rank_,
                    flow.transfer->peer, how);
}

// True when something moved.
Result<bool> TcpWire::push(Flow& flow) const {
  const Bytes body = flow.transfer->send;
  bool moved = false;
  while (flow.sending()) {
    iovec parts[2];
    int count = 0;
    if (flow.sent < sizeof(Header)) {
      parts[count++] = {reinterpret_cast<char*>(&flow.out) + flow.sent, sizeof(Header) - flow.sent};
    }
    const size_t body_sent = flow.sent < sizeof(Header) ? 0 : flow.sent - sizeof(Header);
    if (body_sent < body.size()) {
      parts[count++] = {const_cast<std::byte*>(body.data()) + body_sent,
                        std::min(kMostAtOnce, body.size() - body_sent)};
    }
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<size_t>(count);
    const ssize_t sent = ::sendmsg(flow.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      flow.sent += static_cast<size_t>(sent);
      moved = true;
    } else if (errno == EAGAIN) {
      return moved;
    } else if (errno != EINTR) {
      return broken(flow, std::strerror(errno));
    }
  }
  return moved;
}

Result<bool> TcpWire::pull(Flow& flow) const {
  const WritableBytes body = flow.transfer->recv;
  bool moved = false;
  while (flow.receiving()) {
    std::byte* to = reinterpret_cast<std::byte*>(&flow.in) + flow.received;
    size_t room = sizeof(Header) - flow.received;
    if (flow.received >= sizeof(Header)) {
      to = body.data() + (flow.received - sizeof(Header));
      room = std::min(kMostAtOnce, sizeof(Header) + body.size() - flow.received);
    }
    const ssize_t got = ::recv(flow.fd, to, room, MSG_DONTWAIT);
    if (got > 0) {
      flow.received += static_cast<size_t>(got);
      moved = true;
      if (flow.received == sizeof(Header)) QD_TRY_STATUS(check(flow));
    } else if (got == 0) {
      return broken(flow, "closed");
    } else if (errno == EAGAIN) {
      return moved;
    } else if (errno != EINTR) {
      return broken(flow, std::strerror(errno));
    }
  }
  return moved;
}

Status TcpWire::check(const Flow& flow) const {
  const Header& in = flow.in;
  const Header& expected = flow.expected;
  if (in.what == expected.what && in.count == expected.count && in.bytes == expected.bytes) return {};
  return make_error(
      ErrorCode::kInvalidData,
      "ranks are out of step: rank {} is in {} (message {}) and sends {} bytes, rank {} is in {} (message "
      "{}) and expects {}",
      flow.transfer->peer, collective_name(static_cast<Collective>(in.what)), in.count, in.bytes, rank_,
      collective_name(static_cast<Collective>(expected.what)), expected.count, expected.bytes);
}

// Sleeps until one of the flows can move or a rank is lost.
void wait_for_any(std::span<const Flow> flows, int wake_fd) {
  std::vector<pollfd> polled{{wake_fd, POLLIN, 0}};
  for (const Flow& flow : flows) {
    const auto events = static_cast<short>((flow.sending() ? POLLOUT : 0) | (flow.receiving() ? POLLIN : 0));
    if (events != 0) polled.push_back({flow.fd, events, 0});
  }
  (void)::poll(polled.data(), polled.size(), 1000);
}

Status TcpWire::exchange(Collective what, std::span<const Transfer> transfers, const LossState& loss) {
  std::vector<Flow> flows;
  for (const Transfer& transfer : transfers) {
    const auto p = static_cast<size_t>(transfer.peer);
    QD_CHECK(p < channel_.size() && channel_[p].open(), "a transfer to a rank without a connection");
    Flow& flow = flows.emplace_back();
    flow.transfer = &transfer;
    flow.fd = channel_[p].fd();
    flow.out = {static_cast<uint32_t>(what), sent_[p]++, transfer.send.size()};
    flow.expected = {static_cast<uint32_t>(what), received_[p]++, transfer.recv.size()};
  }
  int idle = 0;
  while (true) {
    bool moved = false, pending = false;
    for (Flow& flow : flows) {
      QD_TRY(const bool pushed, push(flow));
      QD_TRY(const bool pulled, pull(flow));
      moved = moved || pushed || pulled;
      pending = pending || flow.sending() || flow.receiving();
    }
    if (!pending) return {};
    if (loss.any()) return loss.error(collective_name(what), rank_);
    idle = moved ? 0 : idle + 1;
    // In between it does not yield: on a busy machine that gives away a whole slice.
    if (idle > kTries) wait_for_any(flows, loss.wake_fd());
  }
}

}  // namespace

std::unique_ptr<Wire> tcp_wire(int rank, std::vector<Socket> channel) {
  return std::make_unique<TcpWire>(rank, std::move(channel));
}

}  // namespace quadrille::parallel
