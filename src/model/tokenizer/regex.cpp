// SPDX-License-Identifier: Apache-2.0
// PCRE2 with its compiler to machine code where that is there; the interpreter takes over when the compiled matcher
// runs out of its small stack. Every search is bounded in steps, depth and memory.
#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/tokenizer/regex_syntax.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;
constexpr uint32_t kHeapLimitKibibytes = 256 * 1024;

// Backtracking over one run of the text is linear; the rest is slack for alternatives.
uint32_t step_limit(size_t text_bytes) {
  constexpr size_t kMost = 1'000'000'000;
  const size_t limit = 100'000 + 64 * text_bytes;
  return static_cast<uint32_t>(limit < kMost ? limit : kMost);
}

struct Search {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  explicit Search(size_t text_bytes) {
    pcre2_set_match_limit(context, step_limit(text_bytes));
    pcre2_set_depth_limit(context, step_limit(text_bytes));
    pcre2_set_heap_limit(context, kHeapLimitKibibytes);
  }
  ~Search() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  Search(const Search&) = delete;
  Search& operator=(const Search&) = delete;

  int run(const pcre2_code* code, std::string_view text, size_t start) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int count = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK, data, context);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT)
      count = pcre2_match(code, subject, text.size(), start, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
    return count;
  }
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  std::string pattern;
  ~Code() { pcre2_code_free(code); }
};

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes)
    return make_error(ErrorCode::kUnsupported, "regular expression: {} bytes, at most {} are read", pattern.size(),
                      kMaxPatternBytes);
  QD_TRY(const std::string translated, pcre2_from_oniguruma(pattern));
  int number = 0;
  PCRE2_SIZE offset = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  pcre2_set_bsr(context, PCRE2_BSR_UNICODE);
  pcre2_set_parens_nest_limit(context, 200);
  auto code = std::make_shared<Code>();
  code->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &number, &offset, context);
  pcre2_compile_context_free(context);
  if (code->code == nullptr) {
    char text[160] = "";
    pcre2_get_error_message(number, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof(text));
    return make_error(ErrorCode::kInvalidData, "regular expression '{}': {}", pattern, text);
  }
  pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);  // without it the interpreter runs: slower, same matches
  code->pattern = pattern;
  Regex regex;
  regex.code_ = std::move(code);
  return regex;
}

Status Regex::find_all(std::string_view text, std::vector<Match>& matches) const {
  const Search search(text.size());
  size_t start = 0;
  size_t last_end = std::string_view::npos;
  while (start <= text.size()) {
    const int count = search.run(code_->code, text, start);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0)
      return make_error(ErrorCode::kCapacity,
                        "regular expression '{}': stopped at its limit of steps or memory near byte {} of {}",
                        code_->pattern, start, text.size());
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(search.data);
    Match match{range[0], range[1]};
    if (match.begin > match.end) match.begin = match.end;  // \K inside of a lookahead
    if (match.end > match.begin) {
      matches.push_back(match);
      start = match.end;
    } else {
      if (match.end != last_end) matches.push_back(match);
      if (match.end >= text.size()) break;
      start = match.end + character_length(text[match.end]);
    }
    last_end = match.end;
  }
  return {};
}

}  // namespace quadrille::tokenizer
