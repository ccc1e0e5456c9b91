// SPDX-License-Identifier: Apache-2.0
// Page ownership and prefix reuse; see block_manager.h.
#include "engine/block_manager.h"

#include <algorithm>

#include "core/check.h"

namespace quadrille::engine {

BlockManager::BlockManager(int64_t num_pages, bool prefix_cache) : prefix_cache_(prefix_cache) {
  pages_.resize(static_cast<size_t>(std::max<int64_t>(num_pages, 0)));
  blank_.reserve(pages_.size());
  for (int64_t page = total() - 1; page >= 0; --page) blank_.push_back(static_cast<int32_t>(page));
}

std::optional<int32_t> BlockManager::allocate() {
  int32_t page = 0;
  if (!blank_.empty()) {
    page = blank_.back();
    blank_.pop_back();
  } else if (!idle_.empty()) {
    page = idle_.front();
    idle_.pop_front();
    Page& evicted = pages_[static_cast<size_t>(page)];
    by_key_.erase(by_key_.find(*evicted.key));
    evicted.key = nullptr;
  } else {
    return std::nullopt;
  }
  Page& taken = pages_[static_cast<size_t>(page)];
  QD_CHECK(taken.references == 0 && taken.key == nullptr, "a page that was free is in use");
  taken.references = 1;
  return page;
}

void BlockManager::retain(int32_t page) {
  Page& kept = pages_.at(static_cast<size_t>(page));
  QD_CHECK(kept.key != nullptr || kept.references > 0, "only a cached or owned page can be shared");
  if (kept.references == 0) idle_.erase(kept.idle);
  kept.references += 1;
}

void BlockManager::release(int32_t page) {
  Page& left = pages_.at(static_cast<size_t>(page));
  QD_CHECK(left.references > 0, "a page was released more often than it was taken");
  left.references -= 1;
  if (left.references > 0) return;
  if (left.key != nullptr) {
    left.idle = idle_.insert(idle_.end(), page);
  } else {
    blank_.push_back(page);
  }
}

BlockManager::Match BlockManager::match(std::span<const int32_t> tokens, int64_t max_pages) const {
  Match found;
  if (!prefix_cache_) return found;
  const int64_t limit = std::min(max_pages, static_cast<int64_t>(tokens.size()) / kPage);
  for (int64_t i = 0; i < limit; ++i) {
    const auto entry = by_key_.find(make_key(found.chain, tokens.subspan(static_cast<size_t>(i * kPage), kPage)));
    if (entry == by_key_.end()) break;
    found.pages.push_back(entry->second.page);
    found.chain = entry->second.chain;
  }
  return found;
}

Chain BlockManager::publish(int32_t page, Chain chain, std::span<const int32_t> tokens) {
  QD_CHECK(prefix_cache_, "pages are published only where they can be reused");
  Page& full = pages_.at(static_cast<size_t>(page));
  QD_CHECK(full.references > 0 && full.key == nullptr, "a page is published once, by its owner");
  const auto [entry, added] = by_key_.try_emplace(make_key(chain, tokens));
  if (added) {
    entry->second = {page, ++last_chain_};
    full.key = &entry->first;  // nodes of the map do not move
  }
  return entry->second.chain;
}

BlockManager::Key BlockManager::make_key(Chain before, std::span<const int32_t> tokens) {
  QD_CHECK(tokens.size() == static_cast<size_t>(kPage), "only full pages have a key");
  Key key;
  key.before = before;
  std::copy(tokens.begin(), tokens.end(), key.tokens.begin());
  return key;
}

// The finaliser of splitmix64 over the chain before and each token: every bit of each reaches every bit of the hash.
size_t BlockManager::KeyHash::operator()(const Key& key) const {
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
  };
  uint64_t hash = mix(key.before + 0x9E3779B97F4A7C15ull);
  for (const int32_t token : key.tokens) hash = mix(hash + static_cast<uint32_t>(token) + 0x9E3779B97F4A7C15ull);
  return static_cast<size_t>(hash);
}

}  // namespace quadrille::engine
