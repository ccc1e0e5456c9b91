// SPDX-License-Identifier: Apache-2.0
// Methods of str, with Python's results.
#include <algorithm>
#include <array>

#include "model/tokenizer/template/methods.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

Value strip(Runtime& runtime, const Value& self, Arguments& arguments, bool left, bool right) {
  ArgumentReader reader(runtime, arguments, "strip()");
  const Value* set = reader.next("chars");
  if (set != nullptr && !set->is_none() && !set->is_string()) runtime.fail("strip() needs a string");
  reader.finish();
  const bool spaces = set == nullptr || set->is_none();
  runtime.charge(self.string().size() / 64 + (spaces ? 0 : set->string().size()));
  return runtime.text(std::string(spaces ? strip_python_space(self.string(), left, right)
                                         : strip_characters(self.string(), set->string(), left, right)));
}
Value strip_both(Runtime& r, const Value& s, Arguments& a) {
  return strip(r, s, a, true, true);
}
Value strip_left(Runtime& r, const Value& s, Arguments& a) {
  return strip(r, s, a, true, false);
}
Value strip_right(Runtime& r, const Value& s, Arguments& a) {
  return strip(r, s, a, false, true);
}

Value pieces(Runtime& runtime, const std::vector<std::string_view>& parts) {
  std::vector<Value> out;
  for (const std::string_view part : parts) out.push_back(runtime.text(std::string(part)));
  return runtime.list(std::move(out));
}

// Words between white space, at most `most` cuts from the left or right.
std::vector<std::string_view> split_space(std::string_view text, int64_t most, bool from_right) {
  std::vector<std::string_view> words;
  bool in_word = false;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const bool space = is_python_space(next_character(text, i));
    if (!space && !in_word) words.push_back(text.substr(begin, 0));
    if (!space) words.back() = {words.back().data(), words.back().size() + (i - begin)};
    in_word = !space;
  }
  if (most < 0 || static_cast<size_t>(most) >= words.size()) return words;
  const auto cuts = static_cast<size_t>(most);
  if (!from_right) {  // the rest stays as it is behind its leading space
    const auto rest = static_cast<size_t>(words[cuts].data() - text.data());
    words.resize(cuts);
    words.push_back(text.substr(rest));
    return words;
  }
  const std::string_view last = words[words.size() - cuts - 1];
  words.erase(words.begin(), words.end() - static_cast<ptrdiff_t>(cuts));
  words.insert(words.begin(), text.substr(0, static_cast<size_t>(last.data() - text.data()) + last.size()));
  return words;
}

std::vector<std::string_view> split_text(std::string_view text, std::string_view separator, int64_t most,
                                         bool from_right) {
  std::vector<std::string_view> out;
  while (most-- != 0) {
    const size_t place = from_right ? text.rfind(separator) : text.find(separator);
    if (place == std::string_view::npos) break;
    const std::string_view before = text.substr(0, place);
    const std::string_view after = text.substr(place + separator.size());
    out.push_back(from_right ? after : before);
    text = from_right ? before : after;
  }
  out.push_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

Value split_any(Runtime& runtime, const Value& self, Arguments& arguments, bool from_right) {
  ArgumentReader reader(runtime, arguments, "split()");
  const Value* separator = reader.next("sep");
  const int64_t most = reader.integer("maxsplit", -1);
  reader.finish();
  if (separator == nullptr || separator->is_none()) {
    runtime.charge(self.string().size() / 16);
    return pieces(runtime, split_space(self.string(), most, from_right));
  }
  if (!separator->is_string()) runtime.fail("split() needs a string");
  if (separator->string().empty()) runtime.fail("split(): empty separator");
  runtime.charge(self.string().size() / 64);
  return pieces(runtime, split_text(self.string(), separator->string(), most, from_right));
}
Value split_left(Runtime& r, const Value& s, Arguments& a) {
  return split_any(r, s, a, false);
}
Value split_right(Runtime& r, const Value& s, Arguments& a) {
  return split_any(r, s, a, true);
}

Value splitlines(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "splitlines()");
  const bool keep = reader.boolean("keepends", false);
  reader.finish();
  const std::string& text = self.string();
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t at = i;
    const char32_t c = next_character(text, i);
    const bool ends = (c >= 0xA && c <= 0xD) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    if (c == '\r' && i < text.size() && text[i] == '\n') ++i;
    lines.push_back(std::string_view(text).substr(begin, (keep ? i : at) - begin));
    begin = i;
  }
  if (begin < text.size()) lines.push_back(std::string_view(text).substr(begin));
  return pieces(runtime, lines);
}

Value affix(Runtime& runtime, const Value& self, Arguments& arguments, bool at_end) {
  ArgumentReader reader(runtime, arguments, at_end ? "endswith()" : "startswith()");
  const Value& wanted = reader.need("prefix");
  reader.finish();
  const auto has = [&](const Value& part) {
    if (!part.is_string()) runtime.fail("startswith() and endswith() need a string or a tuple of strings");
    return at_end ? self.string().ends_with(part.string()) : self.string().starts_with(part.string());
  };
  if (!wanted.is_tuple()) {
    runtime.require_defined(wanted);
    return Value(has(wanted));
  }
  const auto& items = wanted.list().items;
  runtime.charge(items.size());
  return Value(std::any_of(items.begin(), items.end(), has));
}
Value starts_with(Runtime& r, const Value& s, Arguments& a) {
  return affix(r, s, a, false);
}
Value ends_with(Runtime& r, const Value& s, Arguments& a) {
  return affix(r, s, a, true);
}

Value remove_affix(Runtime& runtime, const Value& self, Arguments& arguments, bool at_end) {
  ArgumentReader reader(runtime, arguments, at_end ? "removesuffix()" : "removeprefix()");
  const std::string& part = reader.need_string("prefix");
  reader.finish();
  const std::string& text = self.string();
  if (at_end) return text.ends_with(part) ? runtime.text(text.substr(0, text.size() - part.size())) : self;
  return text.starts_with(part) ? runtime.text(text.substr(part.size())) : self;
}
Value remove_prefix(Runtime& r, const Value& s, Arguments& a) {
  return remove_affix(r, s, a, false);
}
Value remove_suffix(Runtime& r, const Value& s, Arguments& a) {
  return remove_affix(r, s, a, true);
}

template <std::string (*map)(std::string_view)>
Value mapped(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader(runtime, arguments, "a method of str").finish();
  runtime.charge(self.string().size() / 16);
  return runtime.text(map(self.string()));
}

std::string title_text(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_character(text, i);
    const bool cased = is_alphabetic(c);
    if (cased && in_word) {
      append_lower(out, c);
    } else {
      append_utf8(out, cased ? title_character(c) : c);
    }
    in_word = cased;
  }
  return out;
}

std::string swap_text(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_character(text, i);
    if (is_upper(c)) {
      append_lower(out, c);
    } else {
      append_upper(out, c);
    }
  }
  return out;
}

Value replace(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "replace()");
  const std::string& from = reader.need_string("old");
  const std::string& to = reader.need_string("new");
  int64_t left = reader.integer("count", -1);
  reader.finish();
  const std::string& text = self.string();
  std::string out;
  size_t begin = 0;
  if (from.empty()) {  // before every character and at the end
    for (const std::string_view character : characters_of(text)) {
      if (left != 0) out += to;
      left -= left != 0 ? 1 : 0;
      out += character;
      runtime.charge_bytes(to.size() + 1);
    }
    return runtime.text(left != 0 ? out + to : out);
  }
  for (size_t place = text.find(from); place != std::string::npos && left-- != 0; place = text.find(from, begin)) {
    out.append(text, begin, place - begin).append(to);
    runtime.charge_bytes(place - begin + to.size());
    begin = place + from.size();
  }
  return runtime.text(out.append(text, begin));
}

Value find_any(Runtime& runtime, const Value& self, Arguments& arguments, bool from_right) {
  ArgumentReader reader(runtime, arguments, "find()");
  const std::string& wanted = reader.need_string("sub");
  reader.finish();
  runtime.charge(self.string().size() / 64);
  const size_t place = from_right ? self.string().rfind(wanted) : self.string().find(wanted);
  if (place == std::string::npos) return Value(int64_t{-1});
  return Value(static_cast<int64_t>(count_characters(std::string_view(self.string()).substr(0, place))));
}
Value find_left(Runtime& r, const Value& s, Arguments& a) {
  return find_any(r, s, a, false);
}
Value find_right(Runtime& r, const Value& s, Arguments& a) {
  return find_any(r, s, a, true);
}
Value index_of(Runtime& runtime, const Value& self, Arguments& arguments) {
  Value place = find_any(runtime, self, arguments, false);
  if (place.integer() < 0) runtime.fail("index(): substring not found");
  return place;
}

Value count(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "count()");
  const std::string& wanted = reader.need_string("sub");
  reader.finish();
  const std::string& text = self.string();
  runtime.charge(text.size() / 64);
  if (wanted.empty()) return Value(static_cast<int64_t>(count_characters(text)) + 1);
  int64_t found = 0;
  for (size_t place = text.find(wanted); place != std::string::npos; place = text.find(wanted, place + wanted.size()))
    ++found;
  return Value(found);
}

Value join(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "join()");
  const Value& list = reader.need("iterable");
  reader.finish();
  std::string out;
  bool is_first = true;
  for (const Value& item : elements_of(runtime, list)) {
    if (!item.is_string()) runtime.fail(fmt::format("join() needs strings, found {}", item.type_name()));
    if (!is_first) out += self.string();
    is_first = false;
    runtime.charge_bytes(self.string().size());
    append_text(runtime, item, out);
  }
  return runtime.text(std::move(out));
}

Value partition_any(Runtime& runtime, const Value& self, Arguments& arguments, bool from_right) {
  ArgumentReader reader(runtime, arguments, "partition()");
  const std::string& separator = reader.need_string("sep");
  reader.finish();
  if (separator.empty()) runtime.fail("partition(): empty separator");
  const std::string& text = self.string();
  const size_t place = from_right ? text.rfind(separator) : text.find(separator);
  const Value empty = runtime.text("");
  if (place == std::string::npos)
    return from_right ? runtime.tuple({empty, empty, self}) : runtime.tuple({self, empty, empty});
  return runtime.tuple({runtime.text(text.substr(0, place)), runtime.text(separator),
                        runtime.text(text.substr(place + separator.size()))});
}
Value partition_left(Runtime& r, const Value& s, Arguments& a) {
  return partition_any(r, s, a, false);
}
Value partition_right(Runtime& r, const Value& s, Arguments& a) {
  return partition_any(r, s, a, true);
}

// str.isX(): not empty, and every character passes.
template <bool (*test)(char32_t)>
Value every(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader(runtime, arguments, "a method of str").finish();
  const std::string& text = self.string();
  runtime.charge(text.size() / 16);
  bool all = !text.empty();
  for (size_t i = 0; i < text.size() && all;) all = test(next_character(text, i));
  return Value(all);
}

bool is_letter(char32_t c) {
  return is_alphabetic(c) && !is_numeric(c);
}
bool is_letter_or_number(char32_t c) {
  return is_alphabetic(c) || is_numeric(c);
}
bool is_decimal(char32_t c) {
  return is_numeric(c) && !is_alphabetic(c);
}

Value is_cased(Runtime& runtime, const Value& self, bool (*wanted)(char32_t), bool (*other)(char32_t)) {
  const std::string& text = self.string();
  runtime.charge(text.size() / 16);
  bool found = false;
  for (size_t i = 0; i < text.size();) {
    const char32_t c = next_character(text, i);
    if (other(c)) return Value(false);
    found = found || wanted(c);
  }
  return Value(found);
}
Value is_upper_text(Runtime& r, const Value& s, Arguments&) {
  return is_cased(r, s, is_upper, is_lower);
}
Value is_lower_text(Runtime& r, const Value& s, Arguments&) {
  return is_cased(r, s, is_lower, is_upper);
}

struct Entry {
  std::string_view name;
  StringMethod method;
};

constexpr std::array<Entry, 36> kMethods = {{
    {"strip", strip_both},
    {"lstrip", strip_left},
    {"rstrip", strip_right},
    {"split", split_left},
    {"rsplit", split_right},
    {"splitlines", splitlines},
    {"startswith", starts_with},
    {"endswith", ends_with},
    {"removeprefix", remove_prefix},
    {"removesuffix", remove_suffix},
    {"lower", mapped<lower_text>},
    {"upper", mapped<upper_text>},
    {"capitalize", mapped<capitalize_text>},
    {"title", mapped<title_text>},
    {"casefold", mapped<lower_text>},
    {"swapcase", mapped<swap_text>},
    {"replace", replace},
    {"find", find_left},
    {"rfind", find_right},
    {"index", index_of},
    {"count", count},
    {"join", join},
    {"partition", partition_left},
    {"rpartition", partition_right},
    {"isdigit", every<is_decimal>},
    {"isdecimal", every<is_decimal>},
    {"isnumeric", every<is_numeric>},
    {"isalpha", every<is_letter>},
    {"isalnum", every<is_letter_or_number>},
    {"isspace", every<is_python_space>},
    {"isupper", is_upper_text},
    {"islower", is_lower_text},
    {"ljust", string_ljust},
    {"rjust", string_rjust},
    {"center", string_center},
    {"zfill", string_zfill},
}};

}  // namespace

StringMethod find_string_method(std::string_view name) {
  if (name == "format") return string_format;
  const auto place =
      std::find_if(kMethods.begin(), kMethods.end(), [&](const Entry& entry) { return entry.name == name; });
  return place == kMethods.end() ? nullptr : place->method;
}

}  // namespace quadrille::tokenizer::jinja
