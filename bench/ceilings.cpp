// SPDX-License-Identifier: Apache-2.0
// Runs the loops of the probes on all threads and keeps their rates.
#include "bench/ceilings.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>

#include "bench/probe_loops.h"

namespace quadrille::bench {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

char* map_buffer(int64_t bytes, int advice) {
  void* p = ::mmap(nullptr, static_cast<size_t>(bytes + kHugePage), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  const auto address = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  char* begin = reinterpret_cast<char*>(address);
  ::madvise(begin, static_cast<size_t>(bytes), advice);  // where it is refused the page size stays as it is
  std::memset(begin, 1, static_cast<size_t>(bytes + (p == begin ? kHugePage : 0)));
  return begin;
}

}  // namespace

DotUnit dot_unit_of(std::string_view table_name) {
  if (table_name == "amx") return DotUnit::kAmxBf16;
  if (table_name == "vdpbf16") return DotUnit::kVdpbf16;
  if (table_name == "avx512") return DotUnit::kAvx512Fma;
  return table_name == "avx2" ? DotUnit::kAvx2Fma : DotUnit::kSse2;
}

const char* dot_unit_name(DotUnit unit) {
  switch (unit) {
    case DotUnit::kSse2:
      return "fp32 product and sum, 4 lanes";
    case DotUnit::kAvx2Fma:
      return "fp32 FMA, 8 lanes";
    case DotUnit::kAvx512Fma:
      return "fp32 FMA, 16 lanes";
    case DotUnit::kVdpbf16:
      return "vdpbf16ps, 16 lanes";
    case DotUnit::kAmxBf16:
      return "AMX-BF16 tiles";
  }
  return "";
}

double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double core_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void ProbeForms::add(const std::string& form, double rate) {
  for (Samples& samples : forms_) {
    if (samples.form == form) return samples.rates.push_back(rate);
  }
  forms_.push_back({form, {rate}});
}

std::vector<std::pair<std::string, double>> ProbeForms::medians() const {
  std::vector<std::pair<std::string, double>> all;
  for (const Samples& samples : forms_) all.emplace_back(samples.form, median(samples.rates));
  return all;
}

double ProbeForms::best_rate() const {
  double best = 0;
  for (const auto& [form, rate] : medians()) best = std::max(best, rate);
  return best;
}

std::string ProbeForms::best_form() const {
  std::pair<std::string, double> best{"none", 0};
  for (const auto& form : medians()) {
    if (form.second > best.second) best = form;
  }
  return best.first;
}

struct Ceilings::Buffers {
  explicit Buffers(int64_t size) : bytes(size / kHugePage * kHugePage) {
    huge = map_buffer(bytes, MADV_HUGEPAGE);
    small = map_buffer(bytes, MADV_NOHUGEPAGE);
  }
  // The mappings live as long as the process: probes are made once.
  int64_t bytes;
  char* huge;   // 2 MiB pages where the system gives them
  char* small;  // 4 KiB pages
};

Ceilings::Ceilings(ThreadPool& pool, Clock clock, int64_t buffer_bytes)
    : pool_(pool), clock_(clock), buffers_(std::make_unique<Buffers>(buffer_bytes)) {}
Ceilings::~Ceilings() = default;

// What `loop(slice)` adds up over all slices, a second. Several slices a thread: one that is held up leaves the rest to
// the others, as the kernels do.
template <typename Loop>
double Ceilings::rate_of(Loop&& loop) {
  const int64_t slices = pool_.num_threads() * 4;
  std::atomic<int64_t> done{0};
  const double begin = clock_();
  pool_.run(slices, [&](int64_t slice) { done += static_cast<int64_t>(loop(slice, slices)); });
  return static_cast<double>(done.load()) / (clock_() - begin);
}

void Ceilings::probe_read() {
  struct Form {
    const char* name;
    const char* buffer;
    int64_t ahead;
  };
  const Form forms[] = {{"4 KiB pages", buffers_->small, 0},
                        {"2 MiB pages", buffers_->huge, 0},
                        {"2 MiB pages, prefetch 1 KiB ahead", buffers_->huge, 1024},
                        {"2 MiB pages, prefetch 4 KiB ahead", buffers_->huge, 4096}};
  const ReadLoop read = read_loop();
  for (const Form& form : forms) {
    read_.add(form.name, rate_of([&](int64_t slice, int64_t slices) {
                const int64_t first = buffers_->bytes / kReadStep * slice / slices * kReadStep;
                const int64_t last = buffers_->bytes / kReadStep * (slice + 1) / slices * kReadStep;
                read(form.buffer + first, last - first, form.ahead);
                return last - first;
              }));
  }
}

void Ceilings::probe_dot(DotUnit unit) {
  constexpr int64_t kTurns = 60000;
  for (const DotLoop& loop : dot_loops(unit)) {
    dot_.add(loop.form, rate_of([&](int64_t, int64_t) { return loop.run(kTurns); }));
  }
}

void Ceilings::probe_decode() {
  constexpr int64_t kVectors = 50000;
  for (const DecodeLoop& loop : decode_loops()) {
    decode_.add(loop.form, rate_of([&](int64_t, int64_t) { return loop.run(kVectors); }));
  }
}

void Ceilings::saw_read_rate(double bytes_per_second) {
  seen_read_ = std::max(seen_read_, bytes_per_second);
}

void Ceilings::saw_dot_rate(double flops_per_second) {
  seen_dot_ = std::max(seen_dot_, flops_per_second);
}

void Ceilings::saw_decode_rate(double weights_per_second) {
  seen_decode_ = std::max(seen_decode_, weights_per_second);
}

double Ceilings::read_rate() const {
  return std::max(seen_read_, read_.best_rate());
}

double Ceilings::dot_rate() const {
  return std::max(seen_dot_, dot_.best_rate());
}

double Ceilings::decode_rate() const {
  return std::max(seen_decode_, decode_.best_rate());
}

std::string Ceilings::best_read_form() const {
  return seen_read_ > read_.best_rate() ? "the kernel itself" : read_.best_form();
}

std::string Ceilings::best_dot_form() const {
  return seen_dot_ > dot_.best_rate() ? "the kernel itself" : dot_.best_form();
}

void Ceilings::clear() {
  read_.clear();
  dot_.clear();
  decode_.clear();
  seen_read_ = seen_dot_ = seen_decode_ = 0;
}

}  // namespace quadrille::bench
