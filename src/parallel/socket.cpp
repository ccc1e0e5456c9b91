// SPDX-License-Identifier: Apache-2.0
#include "parallel/socket.h"

#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace quadrille::parallel {
namespace {

constexpr int kBacklog = 256;

std::string reason(int error) {
  return std::strerror(error);  // NOLINT(concurrency-mt-unsafe): glibc's is safe for known errors
}

int milliseconds_left(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<decltype(left)>(left + 1, 0, 1000 * 1000));
}

bool wait_for(int fd, short events, Deadline deadline) {
  while (true) {
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, milliseconds_left(deadline));
    if (ready > 0) return true;
    if (ready == 0 && Clock::now() >= deadline) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
}

// A machine that died without a word is noticed by probes when idle, by missing acknowledgements when sending.
void set_options(int fd) {
  const auto set = [fd](int level, int name, int value) { (void)::setsockopt(fd, level, name, &value, sizeof value); };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 3);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set(IPPROTO_TCP, TCP_KEEPCNT, 4);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 10 * 1000);
}

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<Addresses> resolve(const std::string& host, int port, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  addrinfo* found = nullptr;
  const int status = ::getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (status != 0)
    return make_error(ErrorCode::kIo, "the host name '{}' has no address: {}", host, ::gai_strerror(status));
  return Addresses(found, &::freeaddrinfo);
}

Result<Socket> connect_one(const addrinfo& address, Deadline deadline) {
  Socket socket(::socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, address.ai_protocol));
  if (!socket.open()) return make_error(ErrorCode::kIo, "socket: {}", reason(errno));
  if (::connect(socket.fd(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return make_error(ErrorCode::kIo, "{}", reason(errno));
    if (!wait_for(socket.fd(), POLLOUT, deadline)) return make_error(ErrorCode::kIo, "no answer in time");
    int error = 0;
    socklen_t length = sizeof error;
    (void)::getsockopt(socket.fd(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return make_error(ErrorCode::kIo, "{}", reason(error));
  }
  set_options(socket.fd());
  return socket;
}

Result<Socket> listen_on(const addrinfo& address) {
  Socket socket(::socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, address.ai_protocol));
  if (!socket.open()) return make_error(ErrorCode::kIo, "socket: {}", reason(errno));
  const int on = 1, off = 0;
  (void)::setsockopt(socket.fd(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.ai_family == AF_INET6) (void)::setsockopt(socket.fd(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (::bind(socket.fd(), address.ai_addr, address.ai_addrlen) != 0 || ::listen(socket.fd(), kBacklog) != 0) {
    return make_error(ErrorCode::kIo, "{}", reason(errno));
  }
  return socket;
}

std::string numeric(const sockaddr_storage& address, socklen_t length) {
  char text[NI_MAXHOST] = {};
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  if (::getnameinfo(generic, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) return {};
  const std::string name = text;
  return name.starts_with("::ffff:") ? name.substr(7) : name;  // IPv4 through a socket for both
}

}  // namespace

Socket::~Socket() {
  close();
}

void Socket::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

Result<Socket> connect_to(const std::string& host, int port, Deadline deadline) {
  QD_TRY(const Addresses addresses, resolve(host, port, false));
  Error last = make_error(ErrorCode::kIo, "no address");
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    auto socket = connect_one(*address, deadline);
    if (socket) return socket;
    last = socket.error();
  }
  return last.in(fmt::format("connecting to {} port {}", host, port));
}

Result<Listener> Listener::open(const std::string& host, int port) {
  QD_TRY(const Addresses addresses, resolve(host, port, true));
  // An IPv6 socket also takes IPv4, so it is tried first where every address is meant.
  std::vector<const addrinfo*> order;
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    order.insert(host.empty() && address->ai_family == AF_INET6 ? order.begin() : order.end(), address);
  }
  Error last = make_error(ErrorCode::kIo, "no address to listen on");
  for (const addrinfo* address : order) {
    auto socket = listen_on(*address);
    if (!socket) {
      last = socket.error();
      continue;
    }
    Listener listener;
    listener.socket_ = std::move(*socket);
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    (void)::getsockname(listener.socket_.fd(), reinterpret_cast<sockaddr*>(&bound), &length);
    listener.port_ = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(bound).sin6_port
                                                       : reinterpret_cast<const sockaddr_in&>(bound).sin_port);
    return listener;
  }
  return last.in(fmt::format("listening on {} port {}", host.empty() ? "every address," : host, port));
}

Result<Socket> Listener::accept() const {
  Socket socket(::accept4(socket_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (socket.open()) {
    set_options(socket.fd());
  } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
    return make_error(ErrorCode::kCapacity, "accepting a connection: {}", reason(errno));
  }
  return socket;
}

Status send_all(const Socket& socket, std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<size_t>(sent));
    } else if (errno != EAGAIN && errno != EINTR) {
      return make_error(ErrorCode::kIo, "sending: {}", reason(errno));
    } else if (!wait_for(socket.fd(), POLLOUT, deadline)) {
      return make_error(ErrorCode::kIo, "sending: not taken in time");
    }
  }
  return {};
}

Status receive_all(const Socket& socket, std::span<std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t got = ::recv(socket.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got > 0) {
      bytes = bytes.subspan(static_cast<size_t>(got));
    } else if (got == 0) {
      return make_error(ErrorCode::kIo, "receiving: the other side closed the connection");
    } else if (errno != EAGAIN && errno != EINTR) {
      return make_error(ErrorCode::kIo, "receiving: {}", reason(errno));
    } else if (!wait_for(socket.fd(), POLLIN, deadline)) {
      return make_error(ErrorCode::kIo, "receiving: nothing came in time");
    }
  }
  return {};
}

bool wait_readable(int fd, Deadline deadline) {
  return wait_for(fd, POLLIN, deadline);
}

std::string peer_address(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(socket.fd(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return numeric(address, length);
}

std::string own_address(const Socket& socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(socket.fd(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return numeric(address, length);
}

std::vector<std::string> reachable_addresses() {
  std::vector<std::string> found;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr && found.size() < 4; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    if ((entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_LOOPBACK) != 0) continue;
    sockaddr_storage address{};
    std::memcpy(&address, entry->ifa_addr, sizeof(sockaddr_in));
    found.push_back(numeric(address, sizeof(sockaddr_in)));
  }
  ::freeifaddrs(list);
  return found;
}

std::string host_name() {
  char text[256] = {};
  return ::gethostname(text, sizeof text - 1) == 0 ? text : "";
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host.starts_with("127.") || host == "::1";
}

}  // namespace quadrille::parallel
