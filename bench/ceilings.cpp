// SPDX-License-Identifier: Apache-2.0
#include "bench/ceilings.h"

#include <immintrin.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>

#include "kernels/cpu/cpuid.h"

namespace quadrille::bench {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kStep = 512;  // bytes that one turn of a read loop takes: eight lines

// What the probes compute goes here, so that no compiler drops them.
std::atomic<uint64_t> g_sink{0};

// Reads [p, p + bytes) with 64-byte loads, prefetching `ahead` bytes before the loads of a turn where ahead > 0.
__attribute__((target("avx512f"))) uint64_t read_avx512(const char* p, int64_t bytes, int64_t ahead) {
  __m512i sum[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = 0; i < bytes; i += kStep) {
    if (ahead > 0) {
      for (int64_t line = 0; line < kStep; line += 64) _mm_prefetch(p + i + line + ahead, _MM_HINT_T0);
    }
    for (int64_t line = 0; line < 8; ++line) {
      sum[line % 4] = _mm512_or_si512(sum[line % 4], _mm512_load_si512(p + i + line * 64));
    }
  }
  const __m512i all = _mm512_or_si512(_mm512_or_si512(sum[0], sum[1]), _mm512_or_si512(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(all)));
}

__attribute__((target("avx2"))) uint64_t read_avx2(const char* p, int64_t bytes, int64_t ahead) {
  __m256i sum[4] = {};
  for (int64_t i = 0; i < bytes; i += kStep) {
    if (ahead > 0) {
      for (int64_t line = 0; line < kStep; line += 64) _mm_prefetch(p + i + line + ahead, _MM_HINT_T0);
    }
    for (int64_t half = 0; half < 16; ++half) {
      const auto* from = reinterpret_cast<const __m256i*>(p + i + half * 32);
      sum[half % 4] = _mm256_or_si256(sum[half % 4], _mm256_load_si256(from));
    }
  }
  const __m256i all = _mm256_or_si256(_mm256_or_si256(sum[0], sum[1]), _mm256_or_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) | _mm256_extract_epi64(all, 3));
}

uint64_t read_sse2(const char* p, int64_t bytes, int64_t ahead) {
  __m128i sum[4] = {};
  for (int64_t i = 0; i < bytes; i += kStep) {
    if (ahead > 0) {
      for (int64_t line = 0; line < kStep; line += 64) _mm_prefetch(p + i + line + ahead, _MM_HINT_T0);
    }
    for (int64_t part = 0; part < 32; ++part) {
      const auto* from = reinterpret_cast<const __m128i*>(p + i + part * 16);
      sum[part % 4] = _mm_or_si128(sum[part % 4], _mm_load_si128(from));
    }
  }
  const __m128i all = _mm_or_si128(_mm_or_si128(sum[0], sum[1]), _mm_or_si128(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(all));
}

using Read = uint64_t (*)(const char*, int64_t, int64_t);

// `turns` turns of kChains independent chains; returns the operations done. Enough chains for latency 4 at 2 a clock.
constexpr int kChains = 12;
const volatile float g_starts[kChains] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f, 0.9f, 1.1f, 1.2f, 1.3f};

__attribute__((target("avx512f"))) double dot_avx512(int64_t turns) {
  const volatile float* s = g_starts;  // different starts: equal chains would be merged into one
  __m512 c0 = _mm512_set1_ps(s[0]), c1 = _mm512_set1_ps(s[1]), c2 = _mm512_set1_ps(s[2]), c3 = _mm512_set1_ps(s[3]);
  __m512 c4 = _mm512_set1_ps(s[4]), c5 = _mm512_set1_ps(s[5]), c6 = _mm512_set1_ps(s[6]), c7 = _mm512_set1_ps(s[7]);
  __m512 c8 = _mm512_set1_ps(s[8]), c9 = _mm512_set1_ps(s[9]), c10 = _mm512_set1_ps(s[10]), c11 = _mm512_set1_ps(s[11]);
  const __m512 a = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < turns; ++i) {
    c0 = _mm512_fmadd_ps(c0, a, a), c1 = _mm512_fmadd_ps(c1, a, a), c2 = _mm512_fmadd_ps(c2, a, a);
    c3 = _mm512_fmadd_ps(c3, a, a), c4 = _mm512_fmadd_ps(c4, a, a), c5 = _mm512_fmadd_ps(c5, a, a);
    c6 = _mm512_fmadd_ps(c6, a, a), c7 = _mm512_fmadd_ps(c7, a, a), c8 = _mm512_fmadd_ps(c8, a, a);
    c9 = _mm512_fmadd_ps(c9, a, a), c10 = _mm512_fmadd_ps(c10, a, a), c11 = _mm512_fmadd_ps(c11, a, a);
  }
  c0 = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(c0, c1), _mm512_add_ps(c2, c3)), _mm512_add_ps(c4, c5));
  c6 = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(c6, c7), _mm512_add_ps(c8, c9)), _mm512_add_ps(c10, c11));
  g_sink += static_cast<uint64_t>(_mm512_cvtss_f32(_mm512_add_ps(c0, c6)));
  return static_cast<double>(turns) * kChains * 16 * 2;
}

__attribute__((target("avx2,fma"))) double dot_avx2(int64_t turns) {
  const volatile float* s = g_starts;  // different starts: equal chains would be merged into one
  __m256 c0 = _mm256_set1_ps(s[0]), c1 = _mm256_set1_ps(s[1]), c2 = _mm256_set1_ps(s[2]), c3 = _mm256_set1_ps(s[3]);
  __m256 c4 = _mm256_set1_ps(s[4]), c5 = _mm256_set1_ps(s[5]), c6 = _mm256_set1_ps(s[6]), c7 = _mm256_set1_ps(s[7]);
  __m256 c8 = _mm256_set1_ps(s[8]), c9 = _mm256_set1_ps(s[9]), c10 = _mm256_set1_ps(s[10]), c11 = _mm256_set1_ps(s[11]);
  const __m256 a = _mm256_set1_ps(0.5f);
  for (int64_t i = 0; i < turns; ++i) {
    c0 = _mm256_fmadd_ps(c0, a, a), c1 = _mm256_fmadd_ps(c1, a, a), c2 = _mm256_fmadd_ps(c2, a, a);
    c3 = _mm256_fmadd_ps(c3, a, a), c4 = _mm256_fmadd_ps(c4, a, a), c5 = _mm256_fmadd_ps(c5, a, a);
    c6 = _mm256_fmadd_ps(c6, a, a), c7 = _mm256_fmadd_ps(c7, a, a), c8 = _mm256_fmadd_ps(c8, a, a);
    c9 = _mm256_fmadd_ps(c9, a, a), c10 = _mm256_fmadd_ps(c10, a, a), c11 = _mm256_fmadd_ps(c11, a, a);
  }
  c0 = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(c0, c1), _mm256_add_ps(c2, c3)), _mm256_add_ps(c4, c5));
  c6 = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(c6, c7), _mm256_add_ps(c8, c9)), _mm256_add_ps(c10, c11));
  g_sink += static_cast<uint64_t>(_mm256_cvtss_f32(_mm256_add_ps(c0, c6)));
  return static_cast<double>(turns) * kChains * 8 * 2;
}

double dot_sse2(int64_t turns) {
  const volatile float* s = g_starts;  // different starts: equal chains would be merged into one
  __m128 c0 = _mm_set1_ps(s[0]), c1 = _mm_set1_ps(s[1]), c2 = _mm_set1_ps(s[2]), c3 = _mm_set1_ps(s[3]);
  __m128 c4 = _mm_set1_ps(s[4]), c5 = _mm_set1_ps(s[5]), c6 = _mm_set1_ps(s[6]), c7 = _mm_set1_ps(s[7]);
  __m128 c8 = _mm_set1_ps(s[8]), c9 = _mm_set1_ps(s[9]), c10 = _mm_set1_ps(s[10]), c11 = _mm_set1_ps(s[11]);
  const __m128 a = _mm_set1_ps(0.5f);
  const auto step = [a](__m128 c) { return _mm_add_ps(_mm_mul_ps(c, a), a); };
  for (int64_t i = 0; i < turns; ++i) {
    c0 = step(c0), c1 = step(c1), c2 = step(c2), c3 = step(c3), c4 = step(c4), c5 = step(c5);
    c6 = step(c6), c7 = step(c7), c8 = step(c8), c9 = step(c9), c10 = step(c10), c11 = step(c11);
  }
  c0 = _mm_add_ps(_mm_add_ps(_mm_add_ps(c0, c1), _mm_add_ps(c2, c3)), _mm_add_ps(c4, c5));
  c6 = _mm_add_ps(_mm_add_ps(_mm_add_ps(c6, c7), _mm_add_ps(c8, c9)), _mm_add_ps(c10, c11));
  g_sink += static_cast<uint64_t>(_mm_cvtss_f32(_mm_add_ps(c0, c6)));
  return static_cast<double>(turns) * kChains * 4 * 2;
}

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
  if (table_name == "avx512") return DotUnit::kAvx512Fma;
  return table_name == "avx2" ? DotUnit::kAvx2Fma : DotUnit::kSse2;
}

const char* dot_unit_name(DotUnit unit) {
  if (unit == DotUnit::kAvx512Fma) return "fp32 FMA, 16 lanes";
  return unit == DotUnit::kAvx2Fma ? "fp32 FMA, 8 lanes" : "fp32 product and sum, 4 lanes";
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

Ceilings::Samples& Ceilings::samples_of(const std::string& form) {
  for (Samples& samples : read_) {
    if (samples.form == form) return samples;
  }
  return read_.emplace_back(Samples{form, {}});
}

void Ceilings::probe_read() {
  const kernels::cpu::CpuFeatures& cpu = kernels::cpu::cpu_features();
  const bool wide = cpu.avx512f && cpu.os_saves_zmm;
  const Read read = wide ? read_avx512 : (cpu.avx2 && cpu.os_saves_ymm ? read_avx2 : read_sse2);
  struct Form {
    const char* name;
    const char* buffer;
    int64_t ahead;
  };
  const Form forms[] = {{"4 KiB pages", buffers_->small, 0},
                        {"2 MiB pages", buffers_->huge, 0},
                        {"2 MiB pages, prefetch 1 KiB ahead", buffers_->huge, 1024},
                        {"2 MiB pages, prefetch 4 KiB ahead", buffers_->huge, 4096}};
  // Several slices a thread: one that is held up leaves the rest to the others, as the kernels do.
  const int64_t slices = pool_.num_threads() * 4;
  for (const Form& form : forms) {
    const double begin = clock_();
    pool_.run(slices, [&](int64_t slice) {
      const int64_t first = buffers_->bytes / kStep * slice / slices * kStep;
      const int64_t last = buffers_->bytes / kStep * (slice + 1) / slices * kStep;
      g_sink += read(form.buffer + first, last - first, form.ahead);
    });
    samples_of(form.name).rates.push_back(static_cast<double>(buffers_->bytes) / (clock_() - begin));
  }
}

void Ceilings::probe_dot(DotUnit unit) {
  constexpr int64_t kTurns = 100000;
  const auto dot = unit == DotUnit::kAvx512Fma ? dot_avx512 : (unit == DotUnit::kAvx2Fma ? dot_avx2 : dot_sse2);
  const int64_t slices = pool_.num_threads() * 8;
  std::atomic<int64_t> operations{0};
  const double begin = clock_();
  pool_.run(slices, [&](int64_t) { operations += static_cast<int64_t>(dot(kTurns)); });
  dot_.push_back(static_cast<double>(operations.load()) / (clock_() - begin));
}

void Ceilings::saw_read_rate(double bytes_per_second) {
  seen_read_ = std::max(seen_read_, bytes_per_second);
}

void Ceilings::saw_dot_rate(double flops_per_second) {
  seen_dot_ = std::max(seen_dot_, flops_per_second);
}

double Ceilings::read_rate() const {
  double best = seen_read_;
  for (const Samples& samples : read_) best = std::max(best, median(samples.rates));
  return best;
}

double Ceilings::dot_rate() const {
  return std::max(seen_dot_, median(dot_));
}

std::string Ceilings::best_read_form() const {
  std::string name = "none";
  double best = 0;
  for (const Samples& samples : read_) {
    if (median(samples.rates) > best) best = median(samples.rates), name = samples.form;
  }
  return seen_read_ > best ? "the kernel itself" : name;
}

void Ceilings::clear() {
  read_.clear();
  dot_.clear();
  seen_read_ = seen_dot_ = 0;
}

}  // namespace quadrille::bench
