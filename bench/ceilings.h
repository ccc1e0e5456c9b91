// SPDX-License-Identifier: Apache-2.0
// The ceilings that speeds are reported against: read bandwidth, the dot peak of the unit that a table uses, and the
// rate at which 8-lane instructions decode 4-bit words; probed in the same process, in rounds that the caller
// interleaves with what it measures. The kernel benchmark and the `bench` command of the program use it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/thread_pool.h"

namespace quadrille::bench {

// The arithmetic whose peak bounds a table: fp32 products and sums of 4 lanes (two instructions), FMA of 8 or 16 lanes,
// pairs of bf16 into 16 lanes, tiles of bf16.
enum class DotUnit { kSse2, kAvx2Fma, kAvx512Fma, kVdpbf16, kAmxBf16 };

// The unit that the table of that name uses ("generic", "avx2", "avx512", "vdpbf16", "amx"; others count as "generic").
DotUnit dot_unit_of(std::string_view table_name);
const char* dot_unit_name(DotUnit unit);
// The processor has its instructions and the system keeps its registers (asks for AMX's, which a process must).
bool dot_unit_runs(DotUnit unit);

// Seconds from an arbitrary start: wall time, or the time that this process had cores (one thread on a machine that
// others keep busy: what a kernel costs, not how long it waited).
using Clock = double (*)();
double wall_seconds();
double core_seconds();

// Middle value; 0 for none.
double median(std::vector<double> values);

// The median rate of each form of a probe over the rounds; the best form is the ceiling.
class ProbeForms {
 public:
  void add(const std::string& form, double rate);
  // 0 where nothing was added.
  double best_rate() const;
  std::string best_form() const;
  std::vector<std::pair<std::string, double>> medians() const;
  void clear() { forms_.clear(); }

 private:
  struct Samples {
    std::string form;
    std::vector<double> rates;
  };
  std::vector<Samples> forms_;
};

class Ceilings {
 public:
  // The buffer to read must not fit the caches. All probes run on all threads of the pool.
  explicit Ceilings(ThreadPool& pool, Clock clock = wall_seconds, int64_t buffer_bytes = int64_t{256} << 20);
  ~Ceilings();

  // One round: every form of the read probe once (some 5 ms each on a desktop), or those of the dot probe or the decode
  // probe for about a millisecond each. A unit that does not run here, or a machine without AVX2, adds nothing.
  void probe_read();
  void probe_dot(DotUnit unit);
  void probe_decode();
  // A kernel that is faster than any probe raises the ceiling: a ratio never exceeds one.
  void saw_read_rate(double bytes_per_second);
  void saw_dot_rate(double flops_per_second);
  void saw_decode_rate(double weights_per_second);

  // The best form's median over the rounds so far: bytes, operations (a product and a sum are two), weights a second.
  double read_rate() const;
  double dot_rate() const;
  double decode_rate() const;
  // The name of the form that was best.
  std::string best_read_form() const;
  std::string best_dot_form() const;
  const ProbeForms& read_forms() const { return read_; }
  const ProbeForms& dot_forms() const { return dot_; }
  const ProbeForms& decode_forms() const { return decode_; }
  // Forgets the rounds, not the buffer.
  void clear();

 private:
  struct Buffers;
  template <typename Loop>
  double rate_of(Loop&& loop);

  ThreadPool& pool_;
  Clock clock_;
  std::unique_ptr<Buffers> buffers_;
  ProbeForms read_, dot_, decode_;
  double seen_read_ = 0, seen_dot_ = 0, seen_decode_ = 0;
};

}  // namespace quadrille::bench
