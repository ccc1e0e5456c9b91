// SPDX-License-Identifier: Apache-2.0
// The ceilings that speeds are reported against: read bandwidth and the dot peak of the unit that a table uses, probed
// in the same process, in rounds that the caller interleaves with what it measures. The kernel benchmark and the
// `bench` command of the program use it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/thread_pool.h"

namespace quadrille::bench {

// The arithmetic whose peak bounds a table: fp32 products and sums of 4 lanes (two instructions), FMA of 8 or 16 lanes.
enum class DotUnit { kSse2, kAvx2Fma, kAvx512Fma };

// The unit that the table of that name uses ("generic", "avx2", "avx512"; others count as "generic").
DotUnit dot_unit_of(std::string_view table_name);
const char* dot_unit_name(DotUnit unit);

// Seconds from an arbitrary start: wall time, or the time that this process had cores (one thread on a machine that
// others keep busy: what a kernel costs, not how long it waited).
using Clock = double (*)();
double wall_seconds();
double core_seconds();

// Middle value; 0 for none.
double median(std::vector<double> values);

class Ceilings {
 public:
  // The buffer to read must not fit the caches. All probes run on all threads of the pool.
  explicit Ceilings(ThreadPool& pool, Clock clock = wall_seconds, int64_t buffer_bytes = int64_t{256} << 20);
  ~Ceilings();

  // One round: every form of the read probe once (some 5 ms each on a desktop), or the dot probe for about 2 ms.
  void probe_read();
  void probe_dot(DotUnit unit);
  // A kernel that reads faster than any probe raises the ceiling: a ratio never exceeds one.
  void saw_read_rate(double bytes_per_second);
  void saw_dot_rate(double flops_per_second);

  // The best form's median over the rounds so far, in bytes and in operations (a product and a sum are two) a second.
  double read_rate() const;
  double dot_rate() const;
  // The name of the form that read best.
  std::string best_read_form() const;
  // Forgets the rounds, not the buffer.
  void clear();

 private:
  struct Buffers;
  struct Samples {
    std::string form;
    std::vector<double> rates;
  };
  Samples& samples_of(const std::string& form);

  ThreadPool& pool_;
  Clock clock_;
  std::unique_ptr<Buffers> buffers_;
  std::vector<Samples> read_;
  std::vector<double> dot_;
  double seen_read_ = 0;
  double seen_dot_ = 0;
};

}  // namespace quadrille::bench
