// SPDX-License-Identifier: Apache-2.0
// One pass over an Oniguruma pattern. Atoms are copied or rewritten; a character class becomes one bracket expression
// where it can, otherwise a group of alternatives and lookaheads that matches one character.
#include "model/tokenizer/regex_syntax.h"

#include <optional>
#include <vector>

#include "model/tokenizer/regex_class.h"
#include "model/tokenizer/regex_property.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

constexpr int kMaxClassDepth = 32;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_ascii_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}
std::string code_point(char32_t c) {
  return fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(c));
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (at_ < in_.size()) QD_TRY_STATUS(step());
    return std::move(out_);
  }

 private:
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool starts(std::string_view text) const { return in_.substr(at_).substr(0, text.size()) == text; }
  Error unsupported(std::string_view what) const {
    return make_error(ErrorCode::kUnsupported, "regular expression: {} at byte {} is not supported", what, at_);
  }
  Error invalid(std::string_view what) const {
    return make_error(ErrorCode::kInvalidData, "regular expression: {} at byte {}", what, at_);
  }
  void atom(std::string_view text) {
    atom_start_ = out_.size();
    out_ += text;
  }
  void copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }

  Status step() {
    switch (peek()) {
      case '\\':
        return escape();
      case '[': {
        QD_TRY(const ClassSet set, char_class(0));
        atom(set.text());
        return {};
      }
      case '(':
        return open_group();
      case ')':
        atom_start_ = groups_.empty() ? std::optional<size_t>() : groups_.back();
        if (!groups_.empty()) groups_.pop_back();
        copy(1);
        return {};
      case '*':
      case '+':
      case '?':
        copy(1);
        if (peek() == '?' || peek() == '+') copy(1);
        return {};
      case '{':
        interval();
        return {};
      default: {
        atom_start_ = out_.size();
        copy(character_length(peek()));
        return {};
      }
    }
  }

  // {n} {n,} {n,m} {,m}, anything else is a literal brace.
  void interval() {
    size_t i = at_ + 1;
    const auto digits = [&] {
      const size_t start = i;
      while (i < in_.size() && is_digit(in_[i])) ++i;
      return std::string(in_.substr(start, i - start));
    };
    const std::string low = digits();
    std::string high = low;
    const bool has_comma = i < in_.size() && in_[i] == ',';
    if (has_comma) {
      ++i;
      high = digits();
    }
    if (i >= in_.size() || in_[i] != '}' || (low.empty() && high.empty()) || !atom_start_) {
      atom("\\{");
      ++at_;
      return;
    }
    at_ = i + 1;
    out_ += "{" + (low.empty() ? "0" : low) + (has_comma ? "," + high : "") + "}";
    if (peek() == '?') copy(1);
    if (peek() != '+') return;
    out_.insert(*atom_start_, "(?:");
    out_ += ")";
    copy(1);
  }

  Status open_group() {
    groups_.push_back(out_.size());
    if (!starts("(?")) {
      copy(1);
      return {};
    }
    if (starts("(?#")) {
      const size_t end = in_.find(')', at_);
      if (end == std::string_view::npos) return invalid("comment without end");
      groups_.pop_back();
      at_ = end + 1;
      return {};
    }
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (!starts(known)) continue;
      copy(known.size());
      return {};
    }
    if (starts("(?<")) {
      copy(3);
      return {};
    }
    return options();
  }

  // (?imx-imx) and (?imx-imx:
  Status options() {
    copy(2);
    while (at_ < in_.size() && peek() != ')' && peek() != ':') {
      if (peek() == 'i' || peek() == 'x' || peek() == '-') {
        copy(1);
      } else if (peek() == 'm') {
        out_ += 's';
        ++at_;
      } else {
        return unsupported("group option");
      }
    }
    if (peek() == ':') copy(1);
    return {};
  }

  Status escape() {
    const char c = peek(1);
    QD_TRY(const std::optional<Property> property, class_escape());
    if (property) {
      const std::string_view more = property->items == kWordItems ? kLatinWordItems : std::string_view();
      atom(fmt::format("[{}{}{}]", property->negated ? "^" : "", property->items, more));
      return {};
    }
    if (c == 'b' || c == 'B') {
      const std::string word = fmt::format("[{}{}]", kWordItems, kLatinWordItems);
      atom(c == 'b' ? fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", word)
                    : fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", word));
      at_ += 2;
      return {};
    }
    if (std::string_view("AZzGKR").find(c) != std::string_view::npos && c != '\0') {
      atom_start_ = out_.size();
      copy(2);
      return {};
    }
    if (c >= '1' && c <= '9') {
      atom_start_ = out_.size();
      copy(1);
      while (is_digit(peek())) copy(1);
      return {};
    }
    if (c == 'k') {
      atom_start_ = out_.size();
      copy(2);
      return {};
    }
    QD_TRY(const char32_t literal, literal_escape());
    atom(code_point(literal));
    return {};
  }

  // \d \s \w \h \p{..} and their negations; nothing when another escape stands here.
  Result<std::optional<Property>> class_escape() {
    const char c = peek(1);
    if (std::string_view("dDsSwWhH").find(c) != std::string_view::npos && c != '\0') {
      at_ += 2;
      return std::optional(shorthand_property(c));
    }
    if ((c != 'p' && c != 'P') || peek(2) != '{') return std::optional<Property>();
    const size_t end = in_.find('}', at_);
    if (end == std::string_view::npos) return invalid("property without '}'");
    std::string_view name = in_.substr(at_ + 3, end - at_ - 3);
    bool negated = c == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    std::optional<Property> property = named_property(name, false);
    if (!property) return unsupported(fmt::format("property '{}'", name));
    property->negated = property->negated != negated;
    at_ = end + 1;
    return property;
  }

  // An escape that stands for one character.
  Result<char32_t> literal_escape() {
    const char c = peek(1);
    at_ += 2;
    switch (c) {
      case 't':
        return char32_t{9};
      case 'n':
        return char32_t{10};
      case 'v':
        return char32_t{11};
      case 'f':
        return char32_t{12};
      case 'r':
        return char32_t{13};
      case 'a':
        return char32_t{7};
      case 'e':
        return char32_t{27};
      case 'x':
        return hex_escape();
      case 'u':
        return hex_digits(4, 4);
      case '0':
        return octal_digits();
      case '\0':
        return invalid("backslash at the end");
      default:
        break;
    }
    if (is_ascii_letter(c) || is_digit(c)) return unsupported(fmt::format("escape \\{}", c));
    --at_;
    return next_character(in_, at_);
  }

  Result<char32_t> hex_escape() {
    if (peek() != '{') return hex_digits(1, 2);
    ++at_;
    QD_TRY(const char32_t value, hex_digits(1, 6));
    if (peek() != '}') return invalid("expected '}'");
    ++at_;
    return value;
  }

  Result<char32_t> hex_digits(int least, int most) {
    uint32_t value = 0;
    int count = 0;
    for (; count < most && hex_value(peek()) >= 0; ++count, ++at_)
      value = value * 16 + static_cast<uint32_t>(hex_value(peek()));
    if (count < least) return invalid("expected hexadecimal digits");
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return invalid("no such character");
    return static_cast<char32_t>(value);
  }

  Result<char32_t> octal_digits() {
    uint32_t value = 0;
    for (int i = 0; i < 2 && peek() >= '0' && peek() <= '7'; ++i, ++at_)
      value = value * 8 + static_cast<uint32_t>(peek() - '0');
    return static_cast<char32_t>(value);
  }

  // "[...]" with everything Oniguruma allows in it.
  Result<ClassSet> char_class(int depth) {
    if (depth > kMaxClassDepth) return invalid("character classes nested too deep");
    ++at_;
    ClassSet set;
    if (peek() == '^') {
      set.negated = true;
      ++at_;
    }
    if (peek() == ']') {
      set.items += "\\]";
      ++at_;
    }
    while (true) {
      if (at_ >= in_.size()) return invalid("character class without ']'");
      if (peek() == ']') break;
      if (starts("&&")) {
        at_ += 2;
        set.conditions.push_back(operand_of(set));
        set.items.clear();
        set.alternatives.clear();
        continue;
      }
      QD_TRY_STATUS(class_item(set, depth));
    }
    ++at_;
    return set;
  }

  // What stands left of "&&" so far, without the earlier conditions.
  static std::string operand_of(const ClassSet& set) {
    ClassSet operand;
    operand.items = set.items;
    operand.alternatives = set.alternatives;
    return operand.text();
  }

  Status class_item(ClassSet& set, int depth) {
    if (peek() == '[') return bracket_item(set, depth);
    if (peek() == '\\') {
      QD_TRY(const std::optional<Property> property, class_escape());
      if (property) {
        set.add(*property);
        return {};
      }
    }
    QD_TRY(const char32_t low, class_character());
    set.items += code_point(low);
    const bool ranges = peek() == '-' && peek(1) != ']' && peek(1) != '\0' && peek(1) != '[' &&
                        !(peek(1) == '\\' && std::string_view("dDsSwWhHpP").find(peek(2)) != std::string_view::npos);
    if (!ranges) return {};
    ++at_;
    QD_TRY(const char32_t high, class_character());
    if (high < low) return invalid("empty range in a character class");
    set.items += "-" + code_point(high);
    return {};
  }

  Status bracket_item(ClassSet& set, int depth) {
    const size_t end = in_.find(":]", at_);
    if (starts("[:") && end != std::string_view::npos) {
      std::string_view name = in_.substr(at_ + 2, end - at_ - 2);
      const bool negated = name.starts_with('^');
      if (negated) name.remove_prefix(1);
      std::optional<Property> property = named_property(name, true);
      if (!property) return unsupported(fmt::format("class '{}'", name));
      property->negated = property->negated != negated;
      set.add(*property);
      at_ = end + 2;
      return {};
    }
    QD_TRY(const ClassSet nested, char_class(depth + 1));
    if (nested.is_plain() && !nested.negated) {
      set.items += nested.items;
    } else {
      set.alternatives.push_back(nested.text());
    }
    return {};
  }

  Result<char32_t> class_character() {
    if (peek() == '\\') {
      if (peek(1) == 'b') {
        at_ += 2;
        return char32_t{8};
      }
      return literal_escape();
    }
    return next_character(in_, at_);
  }

  std::string_view in_;
  size_t at_ = 0;
  std::string out_;
  std::optional<size_t> atom_start_;  // where the atom begins that a quantifier would repeat
  std::vector<size_t> groups_;
};

}  // namespace

Result<std::string> pcre2_from_oniguruma(std::string_view pattern) {
  if (first_invalid_utf8(pattern)) return make_error(ErrorCode::kInvalidData, "regular expression: invalid UTF-8");
  return Translator(pattern).run();
}

}  // namespace quadrille::tokenizer
