// SPDX-License-Identifier: Apache-2.0
// Target and ignore entries of compressed-tensors. Regular expressions run in PCRE2, interpreted, with limits on
// steps and memory: the pattern comes from a file that nobody vouches for.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "formats/compressed_tensors.h"

namespace quadrille::formats {
namespace {

constexpr size_t kMaxPatternBytes = 16'384;
constexpr uint32_t kMaxNesting = 100;
constexpr uint32_t kMatchLimit = 200'000;  // backtracking steps; a sane pattern takes a few hundred
constexpr uint32_t kHeapLimitKib = 4096;
constexpr std::string_view kPrefix = "re:";

std::string error_text(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) return fmt::format("error {}", code);
  return reinterpret_cast<const char*>(buffer);
}

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

}  // namespace

struct ModulePattern::Regex {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  Regex() = default;
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;
  ~Regex() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

ModulePattern::ModulePattern() = default;
ModulePattern::ModulePattern(ModulePattern&&) noexcept = default;
ModulePattern& ModulePattern::operator=(ModulePattern&&) noexcept = default;
ModulePattern::~ModulePattern() = default;

Result<ModulePattern> ModulePattern::compile(const std::string& text, std::string_view where) {
  ModulePattern pattern;
  pattern.text_ = text;
  if (text.empty() || text.size() > kMaxPatternBytes)
    return make_error(ErrorCode::kInvalidData, "{}: expected an entry of 1 to {} bytes, found {}", where,
                      kMaxPatternBytes, text.size());
  if (text.compare(0, kPrefix.size(), kPrefix) != 0) return pattern;

  const std::string_view expression = std::string_view(text).substr(kPrefix.size());
  auto regex = std::make_unique<Regex>();
  pcre2_compile_context* compile_context = pcre2_compile_context_create(nullptr);
  if (compile_context == nullptr) return make_error(ErrorCode::kCapacity, "{}: out of memory", where);
  pcre2_set_parens_nest_limit(compile_context, kMaxNesting);
  int code = 0;
  PCRE2_SIZE offset = 0;
  regex->code = pcre2_compile(units(expression), expression.size(),
                              PCRE2_UTF | PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &code, &offset, compile_context);
  pcre2_compile_context_free(compile_context);
  if (regex->code == nullptr)
    return make_error(ErrorCode::kInvalidData, "{}: '{}' is no valid regular expression: {} at character {}", where,
                      text.substr(0, 200), error_text(code), offset);
  regex->context = pcre2_match_context_create(nullptr);
  if (regex->context == nullptr) return make_error(ErrorCode::kCapacity, "{}: out of memory", where);
  pcre2_set_match_limit(regex->context, kMatchLimit);
  pcre2_set_heap_limit(regex->context, kHeapLimitKib);
  pattern.regex_ = std::move(regex);
  return pattern;
}

Result<bool> ModulePattern::matches_path(std::string_view module_path) const {
  if (!is_regex()) return module_path == text_;
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  if (match == nullptr) return make_error(ErrorCode::kCapacity, "out of memory in '{}'", text_);
  const int code = pcre2_match(regex_->code, units(module_path), module_path.size(), 0, 0, match, regex_->context);
  pcre2_match_data_free(match);
  // 0 is a match with more groups than the match data holds.
  if (code >= 0) return true;
  if (code == PCRE2_ERROR_NOMATCH) return false;
  return make_error(ErrorCode::kInvalidData, "matching '{}' against module '{}' failed: {}; write a simpler pattern",
                    text_.substr(0, 200), module_path, error_text(code));
}

}  // namespace quadrille::formats
