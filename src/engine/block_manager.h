// SPDX-License-Identifier: Apache-2.0
// Decides which page of the key/value cache belongs to whom: reference counts, and reuse of full pages by the tokens
// that lead up to them. Integers only; the scheduler calls it, the model never sees it.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "model/forward.h"

namespace quadrille::engine {

inline constexpr int64_t kPage = model::kPagePositions;

// Pages that hold `positions` positions.
inline int64_t pages_for(int64_t positions) {
  return (positions + kPage - 1) / kPage;
}

// Names the whole token history up to the end of a full page. Two pages have one chain value exactly when all their
// tokens from the first of the sequence on are equal: a value is handed out once for (chain before, tokens) and these
// are compared, not only hashed, so that no collision can hand a request the keys of another.
using Chain = uint64_t;
inline constexpr Chain kChainRoot = 0;

class BlockManager {
 public:
  explicit BlockManager(int64_t num_pages, bool prefix_cache);

  int64_t total() const { return static_cast<int64_t>(pages_.size()); }
  // Pages that no sequence references: blank ones, and cached ones that would be evicted.
  int64_t available() const { return static_cast<int64_t>(blank_.size() + idle_.size()); }
  int64_t cached() const { return static_cast<int64_t>(by_key_.size()); }
  bool prefix_cache() const { return prefix_cache_; }
  int64_t references(int32_t page) const { return pages_[static_cast<size_t>(page)].references; }

  // A page with one reference: a blank one, or else the cached one that was released longest ago, which forgets its
  // contents. Nothing when every page is referenced.
  std::optional<int32_t> allocate();
  // One reference more, for a page that match() named.
  void retain(int32_t page);
  // One reference less. A published page without references stays cached until allocate() needs it. Release the pages
  // of a sequence from its end: the page released first is evicted first, and a page is of no use without those before.
  void release(int32_t page);

  struct Match {
    std::vector<int32_t> pages;  // of positions [0, 64 * pages.size())
    Chain chain = kChainRoot;    // after the last of them
  };
  // The longest run of cached pages that hold the beginning of `tokens`, at most `max_pages`. Takes no reference: the
  // answer is good until the next allocate().
  Match match(std::span<const int32_t> tokens, int64_t max_pages) const;
  // `page` now holds keys and values of the 64 `tokens` that follow `chain`. Returns the chain after them. If another
  // page already holds the same, that one stays the cached one.
  Chain publish(int32_t page, Chain chain, std::span<const int32_t> tokens);

 private:
  struct Key {
    Chain before = kChainRoot;
    std::array<int32_t, kPage> tokens = {};
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Cached {
    int32_t page = 0;
    Chain chain = kChainRoot;
  };
  struct Page {
    int64_t references = 0;
    const Key* key = nullptr;             // into by_key_, when the page is cached
    std::list<int32_t>::iterator idle{};  // valid while cached and not referenced
  };
  static Key make_key(Chain before, std::span<const int32_t> tokens);

  bool prefix_cache_;
  std::vector<Page> pages_;
  std::vector<int32_t> blank_;  // the last one is taken first
  std::list<int32_t> idle_;     // cached, not referenced; the front was released longest ago
  std::unordered_map<Key, Cached, KeyHash> by_key_;
  Chain last_chain_ = kChainRoot;
};

}  // namespace quadrille::engine
