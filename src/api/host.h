// SPDX-License-Identifier: Apache-2.0
// What stands behind the handles of c_host.h. Everything is shared, so that handles may go in any order, and nothing
// that a call needs belongs to the call before. Called by host*.cpp.
#pragma once

#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "kernels/api/registry.h"
#include "moe/linear.h"
#include "prepare/prepare_w4.h"
#include "quadrille/c_host.h"

namespace quadrille::api {

// Threads, kernels, and scratch memory that calls borrow: one arena for each call in flight.
struct HostPlace {
  HostPlace(int num_threads, const kernels::KernelTable* chosen)
      : pool(std::make_unique<ThreadPool>(num_threads)), table(chosen), process(::getpid()) {}
  // In a forked process the threads are not there to be joined.
  ~HostPlace() {
    if (process != ::getpid()) static_cast<void>(pool.release());
  }
  HostPlace(const HostPlace&) = delete;
  HostPlace& operator=(const HostPlace&) = delete;
  // kInvalidArgument in a process that was forked from the one that made it.
  Status check_process() const;

  std::unique_ptr<ThreadPool> pool;
  const kernels::KernelTable* table;
  pid_t process;
  std::mutex mutex;  // pairs with `idle`
  std::vector<std::unique_ptr<Arena>> idle;
};

class BorrowedScratch {
 public:
  explicit BorrowedScratch(HostPlace& place) : place_(place) {
    const std::lock_guard lock(place_.mutex);
    if (place_.idle.empty()) {
      arena_ = std::make_unique<Arena>();
      return;
    }
    arena_ = std::move(place_.idle.back());
    place_.idle.pop_back();
  }
  ~BorrowedScratch() {
    arena_->reset();
    const std::lock_guard lock(place_.mutex);
    place_.idle.push_back(std::move(arena_));
  }
  BorrowedScratch(const BorrowedScratch&) = delete;
  BorrowedScratch& operator=(const BorrowedScratch&) = delete;

  Arena* get() const { return arena_.get(); }

 private:
  HostPlace& place_;
  std::unique_ptr<Arena> arena_;
};

struct HostWeights {
  kernels::Numerics numerics = kernels::Numerics::kExact;
  int64_t num_parts = 1;
  std::vector<prepare::PreparedW4> matrices;  // [num_experts]
  std::vector<kernels::W4Matrix> views;       // of `matrices`
  std::vector<float> bias;                    // [num_experts, n] or empty
  std::vector<const float*> bias_views;       // [num_experts] or empty
  moe::W4Linear linear;                       // over the views
};

// Matrices of expert `expert` as the description has them; check_desc() has passed.
std::vector<prepare::CanonicalW4> canonical_parts(const qd_weights_desc& desc, int64_t expert);
// check_desc(), and that the weights lie in host memory.
Status check_host_desc(const qd_weights_desc* desc);

// QD_ROUND_..., QD_TYPE_BF16 or QD_TYPE_F32.
Status check_rounding(int32_t rounding);
Status check_activation_type(int32_t type);

// Rows of one type in fp32 for the layer, rounded where the execution rounds; taken from its scratch.
float* widen_rows(const moe::Execution& execution, int32_t type, const void* x, int64_t num_rows, int64_t width);
// And back: out [num_rows, width] of that type.
void narrow_rows(const moe::Execution& execution, int32_t type, const float* x, int64_t num_rows, int64_t width,
                 void* out);

moe::Execution execution_of(HostPlace& place, const BorrowedScratch& scratch, kernels::Numerics numerics,
                            int32_t rounding);

}  // namespace quadrille::api

struct qd_host {
  std::shared_ptr<quadrille::api::HostPlace> place;
};
struct qd_host_weights {
  std::shared_ptr<const quadrille::api::HostWeights> weights;
};
