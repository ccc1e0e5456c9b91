// SPDX-License-Identifier: Apache-2.0
#include "multi/collective_checks.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace quadrille::multi {
namespace {

using parallel::Communicator;

// Around one line, the one-round border (32 KiB), the mailbox of threads (64 KiB), and large.
constexpr size_t kCounts[] = {0, 1, 2, 15, 16, 17, 255, 1001, 8191, 8192, 8193, 16384, 16385, 20011, 300007};

uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

// Float `i` of rank `r`: magnitudes far apart, so that another order of additions gives other bits; now and then NaN
// of several patterns, infinities, zeros of both signs and subnormals.
float value_of(uint64_t seed, int r, size_t i) {
  const uint64_t h = mix(seed * 1000003 + i * 64 + static_cast<uint64_t>(r));
  switch (h % 97) {
    case 0:
      return std::copysign(0.0f, h & 1024 ? 1.0f : -1.0f);
    case 1:
      return std::numeric_limits<float>::denorm_min() * static_cast<float>(h >> 50);
    case 2: {
      const uint32_t bits = 0x7f800000u | static_cast<uint32_t>(h >> 32) | 1u;
      float nan;
      std::memcpy(&nan, &bits, sizeof nan);
      return h % (97 * 5) == 2 ? nan : 1.0f;
    }
    case 3:
      return h % (97 * 5) == 3 ? std::copysign(std::numeric_limits<float>::infinity(), h & 1024 ? 1.0f : -1.0f) : 2.0f;
    default:
      return std::ldexp(static_cast<float>(static_cast<int64_t>(h >> 40) - (1 << 23)), static_cast<int>(h % 31) - 30);
  }
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// The definition, written out: rank order, NaN of one pattern. Where operands of an addition are both NaN, the order of
// the machine's operands would pick the pattern; here it does not show.
float expected_sum(uint64_t seed, int ranks, size_t i) {
  float sum = value_of(seed, 0, i);
  if (ranks == 1) return sum;
  for (int r = 1; r < ranks; ++r) sum = sum + value_of(seed, r, i);
  if (!std::isnan(sum)) return sum;
  const uint32_t canonical = 0x7fffffffu;
  std::memcpy(&sum, &canonical, sizeof sum);
  return sum;
}

float expected_max(uint64_t seed, int ranks, size_t i) {
  float most = value_of(seed, 0, i);
  if (ranks == 1) return most;
  bool any = false;
  for (int r = 0; r < ranks; ++r) {
    const float x = value_of(seed, r, i);
    if (std::isnan(x)) continue;
    if (!any || x > most || (x == most && !std::signbit(x))) most = x;
    any = true;
  }
  if (any) return most;
  const uint32_t canonical = 0x7fffffffu;
  std::memcpy(&most, &canonical, sizeof most);
  return most;
}

std::byte byte_of(uint64_t seed, int from, int to, size_t i) {
  return static_cast<std::byte>(mix(seed + i * 4096 + static_cast<uint64_t>(from) * 64 + static_cast<uint64_t>(to)));
}

class Checks {
 public:
  Checks(Communicator& communicator, uint64_t& digest)
      : c_(communicator), n_(communicator.size()), ranks_(static_cast<size_t>(n_)), digest_(digest) {}

  std::string run() {
    digest_ = 14695981039346656037ULL;
    for (const size_t count : kCounts) {
      ++seed_;
      for (auto check : {&Checks::sum, &Checks::max, &Checks::gather, &Checks::gather_v, &Checks::scatter,
                         &Checks::all_to_all, &Checks::broadcast}) {
        if (std::string wrong = (this->*check)(count); !wrong.empty()) return wrong;
      }
      if (Status done = c_.barrier(); !done) return done.error().message;
    }
    return parts();
  }

 private:
  std::vector<float> mine(size_t count) const {
    std::vector<float> data(count);
    for (size_t i = 0; i < count; ++i) data[i] = value_of(seed_, c_.rank(), i);
    return data;
  }
  void add_to_digest(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) digest_ = (digest_ ^ p[i]) * 1099511628211ULL;
  }
  template <typename Expected>
  std::string compare(const char* what, const std::vector<float>& got, size_t first, Expected expected) {
    for (size_t i = 0; i < got.size(); ++i) {
      const float want = expected(seed_, n_, first + i);
      if (bits_of(got[i]) == bits_of(want)) continue;
      return fmt::format("{} of {} floats, rank {} of {}: [{}] is {:08x}, expected {:08x}", what, got.size(), c_.rank(),
                         n_, i, bits_of(got[i]), bits_of(want));
    }
    return {};
  }
  std::string sum(size_t count) {
    auto data = mine(count);
    if (Status done = c_.all_reduce_sum(data); !done) return done.error().message;
    add_to_digest(data.data(), count * sizeof(float));
    return compare("all_reduce_sum", data, 0, expected_sum);
  }
  std::string max(size_t count) {
    auto data = mine(count);
    if (Status done = c_.all_reduce_max(data); !done) return done.error().message;
    add_to_digest(data.data(), count * sizeof(float));
    return compare("all_reduce_max", data, 0, expected_max);
  }
  std::string gather(size_t count) { return gather_parts("all_gather", std::vector<size_t>(ranks_, count), true); }
  // Uneven: some ranks nothing, each another amount.
  std::string gather_v(size_t count) {
    std::vector<size_t> bytes(ranks_);
    for (size_t r = 0; r < ranks_; ++r) bytes[r] = r % 3 == 1 ? 0 : count / (r + 1) + r % 2;
    return gather_parts("all_gather_v", bytes, false);
  }
  std::string gather_parts(const char* what, const std::vector<size_t>& bytes, bool even) {
    std::vector<std::byte> own(bytes[static_cast<size_t>(c_.rank())]);
    for (size_t i = 0; i < own.size(); ++i) own[i] = byte_of(seed_, c_.rank(), 0, i);
    size_t total = 0;
    for (const size_t b : bytes) total += b;
    std::vector<std::byte> all(total, std::byte{0xee});
    if (Status done = even ? c_.all_gather(own, all) : c_.all_gather_v(own, bytes, all); !done) {
      return done.error().message;
    }
    add_to_digest(all.data(), all.size());
    size_t at = 0;
    for (int r = 0; r < n_; ++r) {
      for (size_t i = 0; i < bytes[static_cast<size_t>(r)]; ++i, ++at) {
        if (all[at] != byte_of(seed_, r, 0, i)) return fmt::format("{}: byte {} of rank {} is wrong", what, i, r);
      }
    }
    return {};
  }
  std::string scatter(size_t count) {
    std::vector<size_t> counts(ranks_, 0);
    for (size_t r = 0; r + 1 < ranks_; ++r) counts[r] = r % 2 == 1 ? 0 : count / ranks_;
    counts.back() = count;
    for (size_t r = 0; r + 1 < ranks_; ++r) counts.back() -= counts[r];
    size_t first = 0;
    for (int r = 0; r < c_.rank(); ++r) first += counts[static_cast<size_t>(r)];
    const auto in = mine(count);
    std::vector<float> out(counts[static_cast<size_t>(c_.rank())]);
    if (Status done = c_.reduce_scatter_sum(in, counts, out); !done) return done.error().message;
    return compare("reduce_scatter_sum", out, first, expected_sum);
  }
  size_t bytes_from_to(size_t count, int from, int to) const {
    return mix(seed_ + static_cast<uint64_t>(from * 100 + to)) % 3 == 0
               ? 0
               : count / static_cast<size_t>(1 + from) + static_cast<size_t>(to);
  }
  std::string all_to_all(size_t count) {
    std::vector<size_t> send_bytes(ranks_), recv_bytes(ranks_);
    std::vector<std::byte> send, recv;
    const int own = c_.rank();
    for (int r = 0; r < n_; ++r) {
      send_bytes[static_cast<size_t>(r)] = bytes_from_to(count, own, r);
      recv_bytes[static_cast<size_t>(r)] = bytes_from_to(count, r, own);
      for (size_t i = 0; i < send_bytes[static_cast<size_t>(r)]; ++i) send.push_back(byte_of(seed_, own, r, i));
      recv.resize(recv.size() + recv_bytes[static_cast<size_t>(r)]);
    }
    if (Status done = c_.all_to_all_v(send, send_bytes, recv, recv_bytes); !done) return done.error().message;
    size_t at = 0;
    for (int r = 0; r < n_; ++r) {
      for (size_t i = 0; i < recv_bytes[static_cast<size_t>(r)]; ++i, ++at) {
        if (recv[at] != byte_of(seed_, r, own, i))
          return fmt::format("all_to_all_v: byte {} of rank {} is wrong", i, r);
      }
    }
    return {};
  }
  std::string broadcast(size_t count) {
    const int root = static_cast<int>(seed_ % ranks_);
    std::vector<std::byte> data(count);
    for (size_t i = 0; i < count; ++i) data[i] = c_.rank() == root ? byte_of(seed_, root, 7, i) : std::byte{0};
    if (Status done = c_.broadcast(data, root); !done) return done.error().message;
    add_to_digest(data.data(), data.size());
    for (size_t i = 0; i < count; ++i) {
      if (data[i] != byte_of(seed_, root, 7, i)) return fmt::format("broadcast from {}: byte {} is wrong", root, i);
    }
    return {};
  }
  // Rows and columns of a grid, as TP inside EP uses them: sums in the order of all ranks.
  std::string parts() {
    auto part = c_.split(c_.rank() % 2);
    if (!part) return part.error().message;
    const int expected = (n_ + 1 - c_.rank() % 2) / 2;
    if ((*part)->size() != expected || (*part)->rank() != c_.rank() / 2) return "split: wrong size or rank";
    for (const size_t count : {size_t{5}, size_t{20000}}) {
      auto data = mine(count);
      if (Status done = (*part)->all_reduce_sum(data); !done) return done.error().message;
      for (size_t i = 0; i < count && expected > 1; ++i) {
        float sum = value_of(seed_, c_.rank() % 2, i);
        for (int r = c_.rank() % 2 + 2; r < n_; r += 2) sum = sum + value_of(seed_, r, i);
        if (!std::isnan(sum) && bits_of(sum) != bits_of(data[i])) return fmt::format("split: sum [{}] is wrong", i);
      }
    }
    // The whole and the part in turn.
    return sum(100);
  }

  Communicator& c_;
  int n_;
  size_t ranks_;
  uint64_t& digest_;
  uint64_t seed_ = 0;
};

}  // namespace

std::string check_collectives(Communicator& communicator, uint64_t& digest) {
  return Checks(communicator, digest).run();
}

}  // namespace quadrille::multi
