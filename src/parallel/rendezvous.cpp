// SPDX-License-Identifier: Apache-2.0
#include "parallel/rendezvous.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "core/check.h"
#include "parallel/greeting.h"

namespace quadrille::parallel {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr milliseconds kRetry{50};
constexpr seconds kAnswerTime{3};   // for the first word of whoever listens at a port
constexpr seconds kVerdictTime{5};  // longer than rank 0 waits, so that its list of missing ranks arrives
constexpr seconds kLateTime{2};     // for ranks that come after a meeting has failed
constexpr int kMostPort = 65535;
constexpr uint64_t kMostAnswer = 64 << 20;

// Where a rank listens, as rank 0 saw it.
struct TableEntry {
  char host[64] = {};
  int32_t port = 0;
};

std::string list_of(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size() && i < 16; ++i) text += fmt::format("{}{}", i == 0 ? "" : ", ", ranks[i]);
  if (ranks.size() > 16) text += fmt::format(" and {} more", ranks.size() - 16);
  return text;
}

template <typename T>
std::span<std::byte> bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

// --- Rank 0
// -----------------------------------------------------------------------------------------------------------

Result<Listener> listen_at(const MeetingPoint& point) {
  const std::string host = is_loopback(point.host) ? point.host : "";
  Error last;
  for (int i = 0; i < point.num_ports; ++i) {
    auto listener = Listener::open(host, point.port + i);
    if (listener) return listener;
    last = listener.error();
  }
  return make_error(last.code,
                    "rank 0 cannot listen for the other ranks: {}; choose another MASTER_PORT, or end what "
                    "uses this one",
                    last.message);
}

// Everybody who has come, by rank.
struct Guests {
  std::vector<std::optional<Visitor>> of;
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (size_t r = 1; r < of.size(); ++r) {
      if (!of[r]) ranks.push_back(static_cast<int>(r));
    }
    return ranks;
  }
};

Status admit(Visitor visitor, Membership self, uint64_t nonce, Guests& guests) {
  const Hello& hello = visitor.hello;
  Status fits;
  if (hello.purpose != Hello::kJoin) return {};
  if (hello.size != self.size) {
    fits =
        make_error(ErrorCode::kInvalidArgument,
                   "ranks do not agree on their number: rank 0 was started as one of {}, rank {} as one of {}; start "
                   "all with the same world size",
                   self.size, hello.rank, hello.size);
  } else if (hello.rank < 1 || hello.rank >= self.size) {
    fits = make_error(ErrorCode::kInvalidArgument,
                      "a process came as rank {}, expected 1..{}: rank 0 is taken, and every rank is started once",
                      hello.rank, self.size - 1);
  } else if (guests.of[static_cast<size_t>(hello.rank)]) {
    fits = make_error(ErrorCode::kInvalidArgument, "two processes came as rank {}: every rank is started once",
                      hello.rank);
  }
  if (!fits) {
    refuse(visitor.socket, nonce, fits.error());
    return fits;
  }
  Answer welcome = make_answer(Answer::kWelcome, nonce);
  // One that is gone again may come back.
  if (!send_all(visitor.socket, bytes_of(welcome), Clock::now() + seconds(1))) return {};
  guests.of[static_cast<size_t>(hello.rank)] = std::move(visitor);
  return {};
}

// A rank that has come and gone again before the meeting was complete would be missed only by the timeout.
Status check_present(const Guests& guests) {
  for (const auto& guest : guests.of) {
    std::byte nothing[1];
    if (!guest || !wait_readable(guest->socket.fd(), Clock::now() - seconds(1))) continue;
    if (!receive_all(guest->socket, nothing, Clock::now())) {
      return make_error(ErrorCode::kLostRank, "rank {} came and ended before all ranks had come", guest->hello.rank);
    }
  }
  return {};
}

Status gather_guests(Membership self, Door& door, uint64_t nonce, Deadline deadline, milliseconds timeout,
                     Guests& guests) {
  while (!guests.missing().empty()) {
    QD_TRY(auto visitor, door.next(std::min(deadline, Clock::now() + milliseconds(200))));
    if (visitor) QD_TRY_STATUS(admit(std::move(*visitor), self, nonce, guests));
    QD_TRY_STATUS(check_present(guests));
    if (Clock::now() < deadline || guests.missing().empty()) continue;
    const std::vector<int> missing = guests.missing();
    return make_error(ErrorCode::kIo,
                      "{} of {} ranks did not come within {} s: missing {}; look at what their processes "
                      "printed, and whether they can reach rank 0",
                      missing.size(), self.size, static_cast<double>(timeout.count()) / 1000, list_of(missing));
  }
  return {};
}

// Ranks that are still on their way when a meeting fails for its members learn the reason, too, if they come soon.
void turn_all_away(Door& door, uint64_t nonce, const Error& error, const Guests& guests) {
  for (const auto& guest : guests.of) {
    if (guest) refuse(guest->socket, nonce, error);
  }
  if (error.code != ErrorCode::kInvalidArgument) return;
  const Deadline until = Clock::now() + kLateTime;
  for (size_t left = guests.missing().size(); left > 0; --left) {
    const auto late = door.next(until);
    if (!late || !*late) return;
    refuse((*late)->socket, nonce, error);
  }
}

// The table that every rank gets.
std::vector<TableEntry> table_of(const Guests& guests, int own_port) {
  std::vector<TableEntry> table(guests.of.size());
  table[0].port = own_port;
  for (size_t r = 1; r < table.size(); ++r) {
    const std::string host = peer_address(guests.of[r]->socket);
    // A rank that came over the loopback runs on the machine of rank 0: an empty name says so.
    if (!is_loopback(host)) std::strncpy(table[r].host, host.c_str(), sizeof table[r].host - 1);
    table[r].port = guests.of[r]->hello.port;
  }
  return table;
}

Result<std::vector<RankAddress>> host_meeting(const MeetingPoint& point, Membership self, const Listener& listener,
                                              Deadline deadline, milliseconds timeout) {
  Door door(listener, point.nonce);
  Guests guests;
  guests.of.resize(static_cast<size_t>(self.size));
  if (Status all = gather_guests(self, door, point.nonce, deadline, timeout, guests); !all) {
    turn_all_away(door, point.nonce, all.error(), guests);
    return all.error();
  }
  std::vector<TableEntry> table = table_of(guests, listener.port());
  Answer complete = make_answer(Answer::kComplete, point.nonce);
  complete.bytes = table.size() * sizeof(TableEntry);
  for (size_t r = 1; r < table.size(); ++r) {
    const Socket& socket = guests.of[r]->socket;
    Status sent = send_all(socket, bytes_of(complete), deadline + seconds(1));
    if (sent) sent = send_all(socket, std::as_bytes(std::span(table)), deadline + seconds(1));
    if (!sent) return sent.error().in(fmt::format("telling rank {} where the others are", r));
  }
  return std::vector<RankAddress>(table.size());  // rank 0 connects to nobody: the others come to it
}

// --- The others
// -------------------------------------------------------------------------------------------------------

Result<Answer> read_answer(const Socket& socket, uint64_t nonce, Deadline deadline) {
  Answer answer;
  QD_TRY_STATUS(receive_all(socket, bytes_of(answer), deadline));
  if (!is_answer(answer, nonce) || answer.bytes > kMostAnswer) {
    return make_error(ErrorCode::kIo, "what listens there is no rank 0 of this run");
  }
  if (answer.kind != Answer::kRefused) return answer;
  std::string text(answer.bytes, '\0');
  QD_TRY_STATUS(receive_all(socket, std::as_writable_bytes(std::span(text)), deadline));
  return Error{static_cast<ErrorCode>(answer.error_code), text};
}

// A connection on which rank 0 has said welcome. A refusal by this run's rank 0 is final; other failures (kIo) are
// tried again, because rank 0 may not have started yet, and another run at the port may end.
Result<Socket> find_rank_0(const MeetingPoint& point, Hello hello, Deadline deadline, milliseconds timeout) {
  Error last = make_error(ErrorCode::kIo, "no try was made");
  do {
    for (int i = 0; i < point.num_ports; ++i) {
      auto socket = connect_to(point.host, point.port + i, std::min(deadline, Clock::now() + kAnswerTime));
      if (!socket) {
        last = socket.error();
        continue;
      }
      const Deadline answer_by = std::min(deadline, Clock::now() + kAnswerTime);
      Status sent = send_all(*socket, bytes_of(hello), answer_by);
      auto answer = sent ? read_answer(*socket, point.nonce, answer_by) : Result<Answer>(sent.error());
      if (answer) return socket;
      last = answer.error();
      if (last.code != ErrorCode::kIo) return last;
    }
    std::this_thread::sleep_for(kRetry);
  } while (Clock::now() < deadline);
  return make_error(ErrorCode::kIo,
                    "rank {} found no rank 0 at {} port {} within {} s (last: {}); start rank 0, and see "
                    "that MASTER_ADDR and MASTER_PORT name it",
                    hello.rank, point.host, point.port, static_cast<double>(timeout.count()) / 1000, last.message);
}

Result<std::vector<RankAddress>> join_meeting(const MeetingPoint& point, Membership self, const Socket& rank_0,
                                              Deadline deadline) {
  auto verdict = read_answer(rank_0, point.nonce, deadline + kVerdictTime);
  if (!verdict) {
    return verdict.error().in(
        fmt::format("rank {} waited at rank 0 ({} port {}) for the other ranks", self.rank, point.host, point.port));
  }
  std::vector<TableEntry> table(static_cast<size_t>(self.size));
  if (verdict->bytes != table.size() * sizeof(TableEntry)) {
    return make_error(ErrorCode::kInvalidData,
                      "the table of rank 0 has {} bytes, expected {}: all ranks must run the "
                      "same build",
                      verdict->bytes, table.size() * sizeof(TableEntry));
  }
  QD_TRY_STATUS(receive_all(rank_0, std::as_writable_bytes(std::span(table)), deadline + kVerdictTime));
  const std::string master = peer_address(rank_0);
  std::vector<RankAddress> addresses;
  for (const TableEntry& entry : table) {
    addresses.push_back({{entry.host[0] != '\0' ? std::string(entry.host) : master}, entry.port});
  }
  return addresses;
}

// --- Everybody to everybody
// -------------------------------------------------------------------------------------------

Result<Socket> connect_channel(const RankAddress& address, Deadline deadline) {
  Error last = make_error(ErrorCode::kIo, "it has no address");
  for (const std::string& host : address.hosts) {
    // An address of another network may swallow packets: each gets its share of the time.
    const auto share = (deadline - Clock::now()) / static_cast<int>(address.hosts.size());
    auto socket = connect_to(host, address.port, std::min(deadline, Clock::now() + share));
    if (socket) return socket;
    last = socket.error();
  }
  return last;
}

Status accept_channels(Membership self, Door& door, Deadline deadline, Mesh& mesh) {
  size_t expected = mesh.size() * static_cast<size_t>(self.size - 1 - self.rank);
  while (expected > 0) {
    QD_TRY(auto visitor, door.next(deadline));
    if (!visitor) break;
    const Hello& hello = visitor->hello;
    const bool fits = hello.purpose == Hello::kChannel && hello.size == self.size && hello.rank > self.rank &&
                      hello.rank < self.size && hello.channel >= 0 && hello.channel < static_cast<int>(mesh.size());
    if (!fits) {
      refuse(visitor->socket, hello.nonce,
             make_error(ErrorCode::kInvalidArgument, "all {} ranks have come already: every rank is started once",
                        self.size));
      continue;
    }
    Socket& place = mesh[static_cast<size_t>(hello.channel)][static_cast<size_t>(hello.rank)];
    if (place.open()) continue;
    place = std::move(visitor->socket);
    --expected;
  }
  if (expected == 0) return {};
  std::vector<int> missing;
  for (int r = self.rank + 1; r < self.size; ++r) {
    const auto open = [&](const auto& channel) { return channel[static_cast<size_t>(r)].open(); };
    if (!std::all_of(mesh.begin(), mesh.end(), open)) missing.push_back(r);
  }
  return make_error(ErrorCode::kIo,
                    "rank {} got no connection from rank {} in time: see that the machines can reach each "
                    "other on any port",
                    self.rank, list_of(missing));
}

}  // namespace

std::string MeetingPoint::text() const {
  return fmt::format("{}:{}/{:016x}", host, port, nonce);
}

Result<MeetingPoint> MeetingPoint::parse(const std::string& text) {
  const size_t slash = text.rfind('/');
  const size_t colon = text.rfind(':', slash);
  MeetingPoint point;
  const auto number = [&](size_t from, size_t to, int base, auto& value) {
    const auto [end, status] = std::from_chars(text.data() + from, text.data() + to, value, base);
    return status == std::errc() && end == text.data() + to;
  };
  if (slash == std::string::npos || colon == std::string::npos || colon == 0 ||
      !number(colon + 1, slash, 10, point.port) || !number(slash + 1, text.size(), 16, point.nonce) || point.port < 1 ||
      point.port > kMostPort) {
    return make_error(ErrorCode::kInvalidArgument,
                      "'{}' is no meeting point: expected host:port/nonce, as the rank that "
                      "created it wrote it",
                      text);
  }
  point.host = text.substr(0, colon);
  return point;
}

uint64_t random_nonce() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

Result<OpenMeeting> open_meeting(const std::string& host) {
  OpenMeeting meeting;
  QD_TRY(meeting.listener, Listener::open(is_loopback(host) ? host : "", 0));
  meeting.point = {host, meeting.listener.port(), 1, random_nonce()};
  return meeting;
}

Result<Mesh> meet(const MeetingPoint& point, Membership self, Listener listener, int num_channels,
                  milliseconds timeout) {
  QD_CHECK(self.size >= 1 && self.rank >= 0 && self.rank < self.size, "a rank outside of its world");
  const Deadline deadline = Clock::now() + timeout;
  if (self.rank == 0) {
    if (listener.fd() < 0) {
      QD_TRY(listener, listen_at(point));
    }
    QD_TRY(const auto addresses, host_meeting(point, self, listener, deadline, timeout));
    return connect_ranks(self, addresses, listener, point.nonce, num_channels, deadline + kVerdictTime);
  }
  // Listens where rank 0 is reached from: the network that connects the ranks.
  Hello hello = make_hello(Hello::kJoin, point.nonce, self.rank, self.size);
  QD_TRY(listener, Listener::open(is_loopback(point.host) ? point.host : "", 0));
  hello.port = listener.port();
  QD_TRY(const Socket rank_0, find_rank_0(point, hello, deadline, timeout));
  QD_TRY(const auto addresses, join_meeting(point, self, rank_0, deadline));
  return connect_ranks(self, addresses, listener, point.nonce, num_channels, deadline + kVerdictTime);
}

Result<Mesh> connect_ranks(Membership self, const std::vector<RankAddress>& addresses, const Listener& listener,
                           uint64_t nonce, int num_channels, Deadline deadline) {
  Mesh mesh(static_cast<size_t>(num_channels));
  for (auto& channel : mesh) channel.resize(static_cast<size_t>(self.size));
  // Everybody calls those below first: a listener's queue takes the calls before they are accepted, so nobody waits.
  for (int r = 0; r < self.rank; ++r) {
    for (int c = 0; c < num_channels; ++c) {
      Hello hello = make_hello(Hello::kChannel, nonce, self.rank, self.size);
      hello.channel = c;
      auto socket = connect_channel(addresses[static_cast<size_t>(r)], deadline);
      Status sent = socket ? send_all(*socket, bytes_of(hello), deadline) : Status(socket.error());
      if (!sent) return sent.error().in(fmt::format("rank {} to rank {}", self.rank, r));
      mesh[static_cast<size_t>(c)][static_cast<size_t>(r)] = std::move(*socket);
    }
  }
  Door door(listener, nonce);
  QD_TRY_STATUS(accept_channels(self, door, deadline, mesh));
  return mesh;
}

}  // namespace quadrille::parallel
