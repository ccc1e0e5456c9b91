// SPDX-License-Identifier: Apache-2.0
// The ranks that run one model in step, and what they say to each other. Bodies: single, threads (thread_group.h), tcp
// and mpi (wire.h); open.h chooses one. A collective is called by every rank in the same order with matching sizes.
// device_communicator.h has the same functions over device memory with a stream.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/result.h"
#include "parallel/loss.h"

namespace quadrille::parallel {

using Bytes = std::span<const std::byte>;
using WritableBytes = std::span<std::byte>;

// What a rank is calling; ranks compare it and say so when they are not in step.
enum class Collective : uint8_t { kReduce, kMax, kGather, kScatter, kAllToAll, kBroadcast, kBarrier, kSplit };
const char* collective_name(Collective collective);

// Contract of every collective: host memory; returns when this rank's output is complete and its input may be reused.
// Errors: kLostRank (names rank and phase; every later call returns it too), kInvalidArgument when sizes do not fit
// together on this rank (nothing was sent), kInvalidData when ranks are out of step (all ranks are then lost).
// One call at a time on an object and on those split from it; any thread.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual const char* body() const = 0;  // "single", "threads", "tcp", "mpi"

  // data[i] = ((r0[i] + r1[i]) + r2[i]) + ..., one fp32 rounding an addition, the same bits on every rank and every
  // body; NaN comes out canonical. With one rank the data stays as it is. In place.
  Status all_reduce_sum(std::span<float> data);
  // data[i] = the largest over ranks; a NaN is ignored unless all ranks have one (numerics/rank_order.h). In place.
  Status all_reduce_max(std::span<float> data);
  // all = the `mine` of rank 0, rank 1, ...; equal sizes, all.size() = size() * mine.size().
  Status all_gather(Bytes mine, WritableBytes all);
  // The same with bytes[r] from rank r, zero allowed; `bytes` is equal on all ranks.
  Status all_gather_v(Bytes mine, std::span<const size_t> bytes, WritableBytes all);
  // out = this rank's part of the sum in rank order: `in` holds parts of counts[0], counts[1], ... floats, the counts
  // equal on all ranks, out.size() = counts[rank()].
  Status reduce_scatter_sum(std::span<const float> in, std::span<const size_t> counts, std::span<float> out);
  // `send` holds send_bytes[r] for rank r, in rank order without gaps; `recv` takes recv_bytes[r] from rank r likewise.
  // Zero is fine. What r sends to s must be what s expects of r.
  Status all_to_all_v(Bytes send, std::span<const size_t> send_bytes, WritableBytes recv,
                      std::span<const size_t> recv_bytes);
  // data of `root` on every rank.
  Status broadcast(WritableBytes data, int root);
  // Returns when every rank has called it.
  Status barrier();

  // Collective: the ranks that give the same color, in rank order, as a communicator of their own (TP inside EP). It
  // lives at most as long as this one. Lost ranks keep the number that they have among all ranks.
  Result<std::unique_ptr<Communicator>> split(int color);

  // What this rank is doing from now on; peers name it when this rank is lost. Cheap when nothing changes.
  virtual void set_phase(Phase phase) = 0;
  virtual Phase phase() const = 0;
  // Collective: the orderly end. No collective after it. A communicator (one that was not split off) that is destroyed
  // without it counts as a lost rank.
  Status leave();
  // This rank cannot go on: every pending and later collective of the others fails, naming it and `why`.
  virtual void fail(const std::string& why) = 0;
  // Who was lost, if anybody; noticed also while no collective runs.
  const std::shared_ptr<LossState>& loss() const { return loss_; }

 protected:
  Communicator(int rank, int size, std::shared_ptr<LossState> loss);

  // send[p] goes to rank p, recv[p] comes from rank p; the entries of this rank are empty. Rank-wise matching sizes.
  virtual Status exchange(Collective what, std::span<const Bytes> send, std::span<const WritableBytes> recv) = 0;

  // Calls `use` with every rank's `mine` (sizes are equal); `mine` may be overwritten only after the return.
  using UseViews = std::function<void(std::span<const std::byte* const> views)>;
  virtual Status view_all(Collective what, Bytes mine, const UseViews& use);
  // True where view_all reads the other ranks' memory in place.
  virtual bool views_in_place() const { return false; }
  virtual Result<std::unique_ptr<Communicator>> make_part(std::vector<int> members) = 0;
  // After the barrier of leave().
  virtual Status finish() = 0;

 private:
  using Reduce = void (*)(std::span<const std::byte* const> parts, size_t first, size_t count, float* out);
  Status all_reduce(Collective what, std::span<float> data, Reduce reduce);
  // This rank's slice of the reduction of `in`; slice r is floats [offset[r], offset[r + 1]).
  Status reduce_slice(Collective what, const float* in, std::span<const size_t> offset, Reduce reduce, float* out);
  Status gather(Collective what, Bytes mine, std::span<const size_t> bytes, WritableBytes all);
  Error wrong(Collective what, const std::string& text) const;

  int rank_;
  int size_;
  std::shared_ptr<LossState> loss_;
  std::vector<std::byte> received_;  // of the other ranks
  std::vector<float> reduced_;
};

// One rank: every collective is a copy.
std::unique_ptr<Communicator> single_communicator();

}  // namespace quadrille::parallel
