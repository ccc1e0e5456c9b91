// SPDX-License-Identifier: Apache-2.0
// Every collective in terms of one exchange, so that all bodies share the order of additions.
#include "parallel/communicator.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "parallel/ordered_reduce.h"

namespace quadrille::parallel {
namespace {

// Below this every rank reads everything and reduces it alone: one round instead of two.
constexpr size_t kOneRoundBytes = 32 * 1024;

size_t sum_of(std::span<const size_t> values) {
  return std::accumulate(values.begin(), values.end(), size_t{0});
}

void copy_bytes(void* to, const void* from, size_t bytes) {
  if (bytes != 0) std::memcpy(to, from, bytes);
}

}  // namespace

const char* collective_name(Collective collective) {
  switch (collective) {
    case Collective::kReduce:
      return "all_reduce_sum";
    case Collective::kMax:
      return "all_reduce_max";
    case Collective::kGather:
      return "all_gather";
    case Collective::kScatter:
      return "reduce_scatter_sum";
    case Collective::kAllToAll:
      return "all_to_all_v";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kBarrier:
      return "barrier";
    case Collective::kSplit:
      return "split";
  }
  return "unknown";
}

Communicator::Communicator(int rank, int size, std::shared_ptr<LossState> loss)
    : rank_(rank), size_(size), loss_(std::move(loss)) {}

Error Communicator::wrong(Collective what, const std::string& text) const {
  return make_error(ErrorCode::kInvalidArgument, "{} on rank {} of {}: {}", collective_name(what), rank_, size_, text);
}

Status Communicator::view_all(Collective what, Bytes mine, const UseViews& use) {
  const auto n = static_cast<size_t>(size_);
  received_.resize(std::max(received_.size(), n * mine.size()));
  std::vector<Bytes> send(n, mine);
  std::vector<WritableBytes> recv(n);
  std::vector<const std::byte*> views(n);
  for (size_t p = 0; p < n; ++p) {
    recv[p] = {received_.data() + p * mine.size(), mine.size()};
    views[p] = recv[p].data();
  }
  const auto own = static_cast<size_t>(rank_);
  send[own] = {};
  recv[own] = {};
  views[own] = mine.data();
  QD_TRY_STATUS(exchange(what, send, recv));
  use(views);
  return {};
}

Status Communicator::gather(Collective what, Bytes mine, std::span<const size_t> bytes, WritableBytes all) {
  const auto n = static_cast<size_t>(size_);
  std::vector<Bytes> send(n, mine);
  std::vector<WritableBytes> recv(n);
  size_t offset = 0;
  for (size_t p = 0; p < n; ++p) {
    recv[p] = all.subspan(offset, bytes[p]);
    offset += bytes[p];
  }
  const auto own = static_cast<size_t>(rank_);
  // The caller may have put its part in place already.
  if (recv[own].data() != mine.data()) copy_bytes(recv[own].data(), mine.data(), mine.size());
  send[own] = {};
  recv[own] = {};
  return exchange(what, send, recv);
}

Status Communicator::reduce_slice(Collective what, const float* in, std::span<const size_t> offset, Reduce reduce,
                                  float* out) {
  const auto n = static_cast<size_t>(size_);
  const auto own = static_cast<size_t>(rank_);
  const auto* base = reinterpret_cast<const std::byte*>(in);
  const size_t count = offset[own + 1] - offset[own];
  if (views_in_place()) {
    return view_all(what, {base, offset[n] * sizeof(float)},
                    [&](std::span<const std::byte* const> views) { reduce(views, offset[own], count, out); });
  }
  const size_t slice_bytes = count * sizeof(float);
  received_.resize(std::max(received_.size(), n * slice_bytes));
  std::vector<Bytes> send(n);
  std::vector<WritableBytes> recv(n);
  std::vector<const std::byte*> parts(n);
  for (size_t p = 0; p < n; ++p) {
    if (p == own) continue;
    send[p] = {base + offset[p] * sizeof(float), (offset[p + 1] - offset[p]) * sizeof(float)};
    recv[p] = {received_.data() + p * slice_bytes, slice_bytes};
    parts[p] = recv[p].data();
  }
  parts[own] = base + offset[own] * sizeof(float);
  QD_TRY_STATUS(exchange(what, send, recv));
  reduce(parts, 0, count, out);
  return {};
}

Status Communicator::all_reduce(Collective what, std::span<float> data, Reduce reduce) {
  if (size_ == 1) return {};
  reduced_.resize(std::max(reduced_.size(), data.size()));
  const Bytes bytes = std::as_bytes(data);
  if (bytes.size() <= kOneRoundBytes) {
    QD_TRY_STATUS(view_all(
        what, bytes, [&](std::span<const std::byte* const> views) { reduce(views, 0, data.size(), reduced_.data()); }));
    copy_bytes(data.data(), reduced_.data(), bytes.size());
    return {};
  }
  const std::vector<size_t> offset = even_slices(data.size(), size_);
  QD_TRY_STATUS(reduce_slice(what, data.data(), offset, reduce, reduced_.data()));
  std::vector<size_t> slice_bytes(static_cast<size_t>(size_));
  for (size_t p = 0; p < slice_bytes.size(); ++p) slice_bytes[p] = (offset[p + 1] - offset[p]) * sizeof(float);
  const auto own = static_cast<size_t>(rank_);
  return gather(what, {reinterpret_cast<const std::byte*>(reduced_.data()), slice_bytes[own]}, slice_bytes,
                std::as_writable_bytes(data));
}

Status Communicator::all_reduce_sum(std::span<float> data) {
  return all_reduce(Collective::kReduce, data, sum_in_rank_order);
}

Status Communicator::all_reduce_max(std::span<float> data) {
  return all_reduce(Collective::kMax, data, max_in_rank_order);
}

Status Communicator::all_gather(Bytes mine, WritableBytes all) {
  return all_gather_v(mine, std::vector<size_t>(static_cast<size_t>(size_), mine.size()), all);
}

Status Communicator::all_gather_v(Bytes mine, std::span<const size_t> bytes, WritableBytes all) {
  if (bytes.size() != static_cast<size_t>(size_) || bytes[static_cast<size_t>(rank_)] != mine.size() ||
      sum_of(bytes) != all.size()) {
    return wrong(Collective::kGather,
                 fmt::format("{} counts that add up to {} bytes, {} bytes of its own, room for {}; "
                             "expected one count a rank, that of this rank its own bytes, and the "
                             "sum as room",
                             bytes.size(), sum_of(bytes), mine.size(), all.size()));
  }
  return gather(Collective::kGather, mine, bytes, all);
}

Status Communicator::reduce_scatter_sum(std::span<const float> in, std::span<const size_t> counts,
                                        std::span<float> out) {
  const auto own = static_cast<size_t>(rank_);
  if (counts.size() != static_cast<size_t>(size_) || sum_of(counts) != in.size() || counts[own] != out.size()) {
    return wrong(Collective::kScatter, fmt::format("{} counts that add up to {}, {} floats in, {} out; expected one "
                                                   "count a rank, their sum in, that of this rank out",
                                                   counts.size(), sum_of(counts), in.size(), out.size()));
  }
  if (size_ == 1) {
    copy_bytes(out.data(), in.data(), in.size_bytes());
    return {};
  }
  std::vector<size_t> offset(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offset.begin() + 1);
  reduced_.resize(std::max(reduced_.size(), out.size()));
  QD_TRY_STATUS(reduce_slice(Collective::kScatter, in.data(), offset, sum_in_rank_order, reduced_.data()));
  copy_bytes(out.data(), reduced_.data(), out.size_bytes());
  return {};
}

Status Communicator::all_to_all_v(Bytes send, std::span<const size_t> send_bytes, WritableBytes recv,
                                  std::span<const size_t> recv_bytes) {
  const auto n = static_cast<size_t>(size_);
  const auto own = static_cast<size_t>(rank_);
  if (send_bytes.size() != n || recv_bytes.size() != n || sum_of(send_bytes) != send.size() ||
      sum_of(recv_bytes) != recv.size() || send_bytes[own] != recv_bytes[own]) {
    return wrong(Collective::kAllToAll,
                 fmt::format("{} counts to send for {} of {} bytes, {} to receive for {} of {}; expected one count a "
                             "rank, sums that fill the buffers, and equal counts to and from itself",
                             send_bytes.size(), sum_of(send_bytes), send.size(), recv_bytes.size(), sum_of(recv_bytes),
                             recv.size()));
  }
  std::vector<Bytes> to(n);
  std::vector<WritableBytes> from(n);
  size_t sent = 0, received = 0;
  for (size_t p = 0; p < n; ++p) {
    to[p] = send.subspan(sent, send_bytes[p]);
    from[p] = recv.subspan(received, recv_bytes[p]);
    sent += send_bytes[p];
    received += recv_bytes[p];
  }
  copy_bytes(from[own].data(), to[own].data(), to[own].size());
  to[own] = {};
  from[own] = {};
  return exchange(Collective::kAllToAll, to, from);
}

Status Communicator::broadcast(WritableBytes data, int root) {
  if (root < 0 || root >= size_) {
    return wrong(Collective::kBroadcast, fmt::format("root {} is none of the ranks 0..{}", root, size_ - 1));
  }
  const auto n = static_cast<size_t>(size_);
  std::vector<Bytes> send(n);
  std::vector<WritableBytes> recv(n);
  if (root == rank_) {
    std::fill(send.begin(), send.end(), Bytes(data));
    send[static_cast<size_t>(root)] = {};
  } else {
    recv[static_cast<size_t>(root)] = data;
  }
  return exchange(Collective::kBroadcast, send, recv);
}

Status Communicator::barrier() {
  const auto n = static_cast<size_t>(size_);
  return exchange(Collective::kBarrier, std::vector<Bytes>(n), std::vector<WritableBytes>(n));
}

Result<std::unique_ptr<Communicator>> Communicator::split(int color) {
  std::vector<int> colors(static_cast<size_t>(size_));
  const std::vector<size_t> bytes(colors.size(), sizeof(int));
  QD_TRY_STATUS(gather(Collective::kSplit, std::as_bytes(std::span(&color, 1)), bytes,
                       std::as_writable_bytes(std::span(colors))));
  std::vector<int> members;
  for (int p = 0; p < size_; ++p) {
    if (colors[static_cast<size_t>(p)] == color) members.push_back(p);
  }
  return make_part(std::move(members));
}

Status Communicator::leave() {
  QD_TRY_STATUS(barrier());
  return finish();
}

}  // namespace quadrille::parallel
