// SPDX-License-Identifier: Apache-2.0
#include "parallel/open.h"

#include <cstring>
#include <utility>

#include "parallel/mpi.h"
#include "parallel/wire.h"

namespace quadrille::parallel {
namespace {

constexpr int kControl = 0;
constexpr int kData = 1;

// What an MPI rank tells the others about its listener.
struct Card {
  char machine[64] = {};
  char hosts[4][48] = {};
  int32_t port = 0;
  uint64_t nonce = 0;  // that of rank 0 counts
};

Card card_of(const Listener& listener) {
  Card card;
  std::strncpy(card.machine, host_name().c_str(), sizeof card.machine - 1);
  size_t i = 0;
  for (const std::string& host : reachable_addresses())
    std::strncpy(card.hosts[i++], host.c_str(), sizeof card.hosts[0] - 1);
  card.port = listener.port();
  card.nonce = random_nonce();
  return card;
}

Result<std::vector<Card>> exchange_cards(MpiWire& mpi, const Card& own, const LossState& loss) {
  std::vector<Card> cards(static_cast<size_t>(mpi.size));
  std::vector<Transfer> transfers;
  for (int r = 0; r < mpi.size; ++r) {
    if (r == mpi.rank) continue;
    transfers.push_back(
        {r, std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(&cards[static_cast<size_t>(r)], 1))});
  }
  cards[static_cast<size_t>(mpi.rank)] = own;
  QD_TRY_STATUS(mpi.wire->exchange(Collective::kGather, transfers, loss));
  return cards;
}

RankAddress address_of(const Card& card, const Card& own) {
  RankAddress address;
  address.port = card.port;
  if (std::strcmp(card.machine, own.machine) == 0) address.hosts.emplace_back("127.0.0.1");
  for (const auto& host : card.hosts) {
    if (host[0] != '\0') address.hosts.emplace_back(host);
  }
  return address;
}

Result<std::unique_ptr<Communicator>> open_mpi(const Launch& launch, const OpenOptions& options) {
  QD_TRY(MpiWire mpi, open_mpi_wire(options.mpi_module));
  if (mpi.rank != launch.rank || mpi.size != launch.size) {
    return make_error(
        ErrorCode::kInvalidArgument,
        "MPI says rank {} of {}, the environment says rank {} of {}: the program was built for another MPI "
        "than the mpirun that started it",
        mpi.rank, mpi.size, launch.rank, launch.size);
  }
  auto loss = std::make_shared<LossState>();
  if (options.on_lost) loss->on_lost(options.on_lost);
  QD_TRY(const Listener listener, Listener::open("", 0));
  const Card own = card_of(listener);
  QD_TRY(const std::vector<Card> cards, exchange_cards(mpi, own, *loss));
  std::vector<RankAddress> addresses;
  for (const Card& card : cards) addresses.push_back(address_of(card, own));
  QD_TRY(Mesh mesh,
         connect_ranks({mpi.rank, mpi.size}, addresses, listener, cards[0].nonce, 1, Clock::now() + options.timeout));
  auto watch = std::make_unique<Watch>(mpi.rank, std::move(mesh[0]), loss);
  return wire_communicator(mpi.rank, mpi.size, std::move(mpi.wire), std::move(watch), std::move(loss));
}

}  // namespace

Result<std::unique_ptr<Communicator>> open_tcp(const MeetingPoint& point, Membership self, Listener listener,
                                               const OpenOptions& options) {
  QD_TRY(Mesh mesh, meet(point, self, std::move(listener), 2, options.timeout));
  auto loss = std::make_shared<LossState>();
  if (options.on_lost) loss->on_lost(options.on_lost);
  auto watch = std::make_unique<Watch>(self.rank, std::move(mesh[kControl]), loss);
  return wire_communicator(self.rank, self.size, tcp_wire(self.rank, std::move(mesh[kData])), std::move(watch),
                           std::move(loss));
}

Result<std::unique_ptr<Communicator>> open_communicator(const Launch& launch, const OpenOptions& options) {
  if (launch.size == 1) {
    auto single = single_communicator();
    if (options.on_lost) single->loss()->on_lost(options.on_lost);
    return single;
  }
  if (launch.launcher == Launcher::kOpenMpi) return open_mpi(launch, options);
  const MeetingPoint point{launch.master_host, launch.master_port, launch.num_ports, launch.nonce};
  return open_tcp(point, {launch.rank, launch.size}, {}, options);
}

}  // namespace quadrille::parallel
