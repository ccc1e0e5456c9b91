// SPDX-License-Identifier: Apache-2.0
// trim_blocks: the newline behind a block or comment goes. lstrip_blocks: spaces before a block or comment go when
// nothing else stands on the line. A minus takes all white space on its side, a plus turns both rules off.
#include "model/tokenizer/template/lexer.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "model/tokenizer/template/runtime.h"
#include "model/tokenizer/template/text.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (static_cast<uint8_t>(c) & 0x80) != 0;
}
bool is_name_part(char c) {
  return is_name_start(c) || is_digit(c);
}

// Newlines of all kinds become \n, and one at the end goes.
std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)), in_(source_) {}

  std::vector<Token> run() {
    while (at_ < in_.size()) root();
    add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool starts(std::string_view text) const { return in_.substr(at_, text.size()) == text; }
  void add(Token::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }
  [[noreturn]] void fail(std::string_view text) const { fail_at(line_, ErrorCode::kInvalidData, text); }
  void advance(size_t count) {
    line_ += static_cast<int>(
        std::count(in_.begin() + static_cast<ptrdiff_t>(at_), in_.begin() + static_cast<ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
  }
  size_t spaces_from(size_t position) const {
    size_t end = position;
    while (end < in_.size()) {
      size_t next = end;
      if (!is_python_space(next_character(in_, next))) break;
      end = next;
    }
    return end;
  }

  // Text up to the next tag, then the tag.
  void root() {
    size_t tag = at_;
    while (true) {
      tag = in_.find('{', tag);
      if (tag == std::string_view::npos || tag + 1 >= in_.size()) {
        if (at_ < in_.size()) add(Token::Kind::kText, std::string(in_.substr(at_)));
        advance(in_.size() - at_);
        return;
      }
      if (in_[tag + 1] == '{' || in_[tag + 1] == '%' || in_[tag + 1] == '#') break;
      ++tag;
    }
    const char kind = in_[tag + 1];
    const char sign = tag + 2 < in_.size() && (in_[tag + 2] == '-' || in_[tag + 2] == '+') ? in_[tag + 2] : '\0';
    add_text(in_.substr(at_, tag - at_), sign, kind != '{');
    advance(tag - at_ + (sign != '\0' ? 3 : 2));
    if (kind == '#') {
      comment();
    } else if (kind == '{') {
      add(Token::Kind::kVariableBegin, "{{");
      expression_tokens('}');
    } else if (!raw_block()) {
      add(Token::Kind::kBlockBegin, "{%");
      expression_tokens('%');
    }
  }

  // `strips`: the tag is one that lstrip_blocks works on.
  void add_text(std::string_view text, char sign, bool strips) {
    if (sign == '-') {
      text = strip_python_space(text, false, true);
    } else if (sign == '\0' && strips) {
      const size_t newline = text.rfind('\n');
      const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_start > 0 || line_starting_) && strip_python_space(text.substr(line_start), true, false).empty())
        text = text.substr(0, line_start);
    }
    if (!text.empty()) add(Token::Kind::kText, std::string(text));
  }

  // Behind "%}" and its like: what the rules take of the text that follows.
  void after_tag(char sign, bool trims_newline) {
    const size_t begin = at_;
    if (sign == '-') {
      advance(spaces_from(at_) - at_);
    } else if (sign == '\0' && trims_newline && peek() == '\n') {
      advance(1);
    }
    line_starting_ = at_ > begin && in_[at_ - 1] == '\n';
  }

  void comment() {
    const size_t end = in_.find("#}", at_);
    if (end == std::string_view::npos) fail("comment without '#}'");
    const char sign = end > at_ && (in_[end - 1] == '-' || in_[end - 1] == '+') ? in_[end - 1] : '\0';
    advance(end + 2 - at_);
    after_tag(sign, true);
  }

  // {% raw %} ... {% endraw %}, where one stands here.
  bool raw_block() {
    size_t i = spaces_from(at_);
    if (in_.substr(i, 3) != "raw") return false;
    i = spaces_from(i + 3);
    const bool minus = in_.substr(i, 3) == "-%}";
    if (!minus && in_.substr(i, 2) != "%}") return false;
    advance(i + (minus ? 3 : 2) - at_);
    if (minus) advance(spaces_from(at_) - at_);
    line_starting_ = at_ > 0 && in_[at_ - 1] == '\n';
    for (size_t tag = in_.find("{%", at_); tag != std::string_view::npos; tag = in_.find("{%", tag + 2)) {
      const char sign = tag + 2 < in_.size() && (in_[tag + 2] == '-' || in_[tag + 2] == '+') ? in_[tag + 2] : '\0';
      size_t end = spaces_from(tag + (sign != '\0' ? 3 : 2));
      if (in_.substr(end, 6) != "endraw") continue;
      end = spaces_from(end + 6);
      const char end_sign = end < in_.size() && (in_[end] == '-' || in_[end] == '+') ? in_[end] : '\0';
      if (end_sign != '\0') ++end;
      if (in_.substr(end, 2) != "%}") continue;
      add_text(in_.substr(at_, tag - at_), sign, true);
      advance(end + 2 - at_);
      after_tag(end_sign, true);
      return true;
    }
    fail("{% raw %} without {% endraw %}");
  }

  // Tokens up to the end of the tag; `closer` is '}' or '%'.
  void expression_tokens(char closer) {
    std::string brackets;
    const std::string end = {closer, '}'};
    while (true) {
      advance(spaces_from(at_) - at_);
      if (at_ >= in_.size()) fail(closer == '}' ? "'{{' without '}}'" : "'{%' without '%}'");
      const bool has_sign = peek() == '-' || (peek() == '+' && closer == '%');
      if (brackets.empty() && (starts(end) || (has_sign && in_.substr(at_ + 1, 2) == end))) {
        const char sign = starts(end) ? '\0' : peek();
        add(closer == '}' ? Token::Kind::kVariableEnd : Token::Kind::kBlockEnd, end);
        advance(sign == '\0' ? 2 : 3);
        after_tag(sign, closer == '%');
        return;
      }
      expression_token(brackets);
    }
  }

  void expression_token(std::string& brackets) {
    const char c = peek();
    if (is_name_start(c)) {
      size_t end = at_;
      while (end < in_.size() && is_name_part(in_[end])) ++end;
      add(Token::Kind::kName, std::string(in_.substr(at_, end - at_)));
      advance(end - at_);
    } else if (is_digit(c)) {
      number();
    } else if (c == '\'' || c == '"') {
      string();
    } else {
      operator_token(brackets);
    }
  }

  void operator_token(std::string& brackets) {
    static constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                                    "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                                    ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    const auto found =
        std::find_if(kOperators.begin(), kOperators.end(), [&](std::string_view text) { return starts(text); });
    if (found == kOperators.end())
      fail(fmt::format("unexpected character '{}'", in_.substr(at_, character_length(peek()))));
    const char c = (*found)[0];
    if (c == '(' || c == '[' || c == '{') brackets += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) fail(fmt::format("unexpected '{}'", c));
      brackets.pop_back();
    }
    add(Token::Kind::kOperator, std::string(*found));
    advance(found->size());
  }

  void number() {
    size_t end = at_;
    std::string digits;
    if (peek() == '0' && std::string_view("xXoObB").find(peek(1)) != std::string_view::npos && peek(1) != '\0') {
      const int base = (peek(1) | 0x20) == 'x' ? 16 : (peek(1) | 0x20) == 'o' ? 8 : 2;
      for (end = at_ + 2; end < in_.size() && (is_name_part(in_[end])); ++end)
        if (in_[end] != '_') digits += in_[end];
      int64_t value = 0;
      if (!parse_integer(digits, base, value)) fail(fmt::format("'{}' is no number", in_.substr(at_, end - at_)));
      add(Token::Kind::kInteger, fmt::format("{}", value));
      advance(end - at_);
      return;
    }
    const auto take_digits = [&] {
      while (end < in_.size() &&
             (is_digit(in_[end]) || (in_[end] == '_' && end + 1 < in_.size() && is_digit(in_[end + 1])))) {
        if (in_[end] != '_') digits += in_[end];
        ++end;
      }
    };
    take_digits();
    bool is_float = false;
    if (end + 1 < in_.size() && in_[end] == '.' && is_digit(in_[end + 1])) {
      is_float = true;
      digits += in_[end++];
      take_digits();
    }
    size_t exponent = end + 1;
    if (exponent < in_.size() && (in_[exponent] == '+' || in_[exponent] == '-')) ++exponent;
    if (end < in_.size() && (in_[end] | 0x20) == 'e' && exponent < in_.size() && is_digit(in_[exponent])) {
      is_float = true;
      digits += in_.substr(end, exponent - end);
      end = exponent;
      take_digits();
    }
    add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, digits);
    advance(end - at_);
  }

  void string() {
    const char quote = peek();
    size_t end = at_ + 1;
    while (end < in_.size() && in_[end] != quote) end += in_[end] == '\\' ? 2 : 1;
    if (end >= in_.size()) fail("string without its closing quote");
    const std::optional<std::string> text = unescape_python(in_.substr(at_ + 1, end - at_ - 1));
    if (!text) fail("bad escape in a string");
    add(Token::Kind::kString, *text);
    advance(end + 1 - at_);
  }

  std::string source_;
  std::string_view in_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace quadrille::tokenizer::jinja
