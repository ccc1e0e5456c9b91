// SPDX-License-Identifier: Apache-2.0
// Ranks show each other a card: which host, which process, which GPU, where the region lies. Threads of one process
// share the ownership of all regions; processes exchange handles. Nothing is unmapped before the own stream has ended.
#include "parallel/peer_memory.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "device/device.h"
#include "kernels/api/peer_problems.h"
#include "parallel/agree.h"
#include "parallel/rendezvous.h"
#include "parallel/socket.h"

namespace quadrille::parallel {

using SharedBuffer = std::shared_ptr<device::PeerBuffer>;

// What a rank tells the others. Names are cut to their field; they are compared, not used.
struct PeerMemory::Card {
  char host[64] = {};
  char boot[48] = {};
  int64_t process = 0;
  uint64_t nonce = 0;  // of the process: containers may have equal process numbers
  int32_t ordinal = 0;
  device::GpuName gpu{};
  uint64_t bytes = 0;
  const SharedBuffer* buffer = nullptr;  // to be read in the same process only

  bool same_host(const Card& other) const {
    return std::strcmp(host, other.host) == 0 && std::strcmp(boot, other.boot) == 0;
  }
  bool same_process(const Card& other) const {
    return same_host(other) && process == other.process && nonce == other.nonce;
  }
};

namespace {

template <size_t N>
void copy_name(char (&to)[N], const std::string& from) {
  std::strncpy(to, from.c_str(), N - 1);
}

// Changes when the machine starts; containers of a machine see the same.
std::string boot_id() {
  std::string text;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> text;
  return text;
}

uint64_t process_nonce() {
  static const uint64_t nonce = random_nonce();
  return nonce;
}

template <typename T>
Result<std::vector<T>> gather(Communicator& host, const T& mine) {
  std::vector<T> all(static_cast<size_t>(host.size()));
  QD_TRY_STATUS(host.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all))));
  return all;
}

Result<SharedBuffer> zeroed_memory(int ordinal, size_t bytes, device::Stream stream) {
  QD_TRY_STATUS(device::check_stream(stream));
  QD_TRY_STATUS(device::use(ordinal));
  QD_TRY(device::PeerBuffer memory, device::PeerBuffer::allocate(bytes));
  QD_TRY_STATUS(device::fill(memory.get(), 0, memory.size_bytes(), stream));
  QD_TRY_STATUS(device::synchronize(stream));
  return std::make_shared<device::PeerBuffer>(std::move(memory));
}

}  // namespace

// The addresses of all regions in this process; regions of other processes stay null.
Status PeerMemory::map(std::span<const Card> cards, int ordinal) {
  const Card& own = cards[static_cast<size_t>(host_.rank())];
  regions_.assign(cards.size(), nullptr);
  for (size_t r = 0; r < cards.size(); ++r) {
    const Card& card = cards[r];
    if (card.bytes != own.bytes) {
      return make_error(ErrorCode::kInvalidArgument,
                        "peer memory: {} bytes here, {} bytes on rank {}: expected as many", own.bytes, card.bytes, r);
    }
    if (!card.same_host(own)) {
      return make_error(ErrorCode::kUnsupported,
                        "peer memory: rank {} is on host {}, this rank on {}: expected one host", r, card.host,
                        own.host);
    }
    if (!card.same_process(own)) continue;
    QD_TRY_STATUS(device::reach_peer(ordinal, card.ordinal));
    of_threads_.push_back(*card.buffer);
    regions_[r] = static_cast<std::byte*>((*card.buffer)->get());
  }
  return {};
}

// Collective among ranks of which some are other processes.
Status PeerMemory::open_handles(std::span<const Card> cards) {
  auto handle = own_->handle();
  QD_TRY_STATUS(agree(host_, handle ? Status() : Status(handle.error()), "making a handle of device memory"));
  QD_TRY(const std::vector<device::MemoryHandle> handles, gather(host_, *handle));
  const Card& own = cards[static_cast<size_t>(host_.rank())];
  for (size_t r = 0; r < cards.size(); ++r) {
    if (cards[r].same_process(own)) continue;
    exported_ = true;
    // A GPU that this process does not see is mapped all the same where the driver can.
    QD_TRY(const int visible, device::find_gpu(cards[r].gpu));
    if (visible >= 0) QD_TRY_STATUS(device::reach_peer(own.ordinal, visible));
    auto mapping = device::PeerMapping::open(handles[r]);
    if (!mapping) return mapping.error().in(fmt::format("memory of rank {}", r));
    regions_[r] = static_cast<std::byte*>(mapping->get());
    of_processes_.push_back(std::move(*mapping));
  }
  return {};
}

Result<std::unique_ptr<PeerMemory>> PeerMemory::create(Communicator& host, int ordinal, size_t bytes,
                                                       device::Stream stream) {
  if (host.size() > kernels::kMaxPeers) {
    return make_error(ErrorCode::kUnsupported, "peer memory: expected at most {} ranks, found {}", kernels::kMaxPeers,
                      host.size());
  }
  auto memory = zeroed_memory(ordinal, bytes, stream);
  Card card;
  Status ready = memory ? Status() : Status(memory.error());
  if (ready) {
    if (auto name = device::gpu_name(ordinal)) {
      card.gpu = *name;
    } else {
      ready = name.error();
    }
  }
  QD_TRY_STATUS(agree(host, ready, "taking memory that peers can reach"));

  // Peers read this while they copy it: it lives until all say that they have, and for ever where one was lost.
  auto* offered = new SharedBuffer(*memory);
  copy_name(card.host, host_name());
  copy_name(card.boot, boot_id());
  card.process = ::getpid();
  card.nonce = process_nonce();
  card.ordinal = ordinal;
  card.bytes = bytes;
  card.buffer = offered;
  QD_TRY(const std::vector<Card> cards, gather(host, card));
  std::unique_ptr<PeerMemory> out(new PeerMemory(host, bytes, stream));
  out->own_ = *memory;
  QD_TRY_STATUS(agree(host, out->map(cards, ordinal), "reaching the memory of its peers"));
  delete offered;
  if (std::any_of(cards.begin(), cards.end(), [&](const Card& c) { return !c.same_process(card); })) {
    QD_TRY_STATUS(agree(host, out->open_handles(cards), "mapping the memory of its peers"));
  }
  return out;
}

Status PeerMemory::close() {
  QD_TRY_STATUS(device::synchronize(stream_));
  QD_TRY_STATUS(host_.barrier());  // no kernel of any rank is running
  of_processes_.clear();
  of_threads_.clear();
  regions_.clear();
  QD_TRY_STATUS(host_.barrier());  // nobody has anything mapped
  exported_ = false;
  own_.reset();
  return {};
}

PeerMemory::~PeerMemory() {
  if (!own_) return;
  (void)device::synchronize(stream_);
  if (exported_) own_->abandon();
}

}  // namespace quadrille::parallel
