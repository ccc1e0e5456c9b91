// SPDX-License-Identifier: Apache-2.0
// Token texts and their ids; looked up by views without a copy. Shared by the parts of the tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace quadrille::tokenizer {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

using Vocabulary = std::unordered_map<std::string, int32_t, TextHash, std::equal_to<>>;

}  // namespace quadrille::tokenizer
