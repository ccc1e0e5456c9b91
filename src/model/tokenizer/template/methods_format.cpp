// SPDX-License-Identifier: Apache-2.0
// Methods of str that lay out text: padding and format().
#include <algorithm>

#include "model/tokenizer/template/methods.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

Value justify(Runtime& runtime, const Value& self, Arguments& arguments, int where) {
  ArgumentReader reader(runtime, arguments, "ljust(), rjust(), center() and zfill()");
  const int64_t width = reader.integer("width", 0);
  const std::string fill = where == 3 ? "0" : reader.string("fillchar", " ");
  reader.finish();
  if (count_characters(fill) != 1) runtime.fail("the fill must be one character");
  if (width > 100'000) runtime.unsupported("a width of more than 100000");
  const auto length = static_cast<int64_t>(count_characters(self.string()));
  const int64_t missing = std::max<int64_t>(width - length, 0);
  int64_t left = where == 0 ? 0 : missing;
  if (where == 2) left = missing / 2 + (missing & width & 1);
  std::string text = self.string();
  std::string front;
  for (int64_t i = 0; i < left; ++i) front += fill;
  const size_t sign = where == 3 && (text.starts_with('-') || text.starts_with('+')) ? 1 : 0;
  text.insert(sign, front);
  for (int64_t i = left; i < missing; ++i) text += fill;
  return runtime.text(std::move(text));
}
// What stands between the braces of one field: nothing, a position or a name.
const Value* find_field(Runtime& runtime, const std::string& name, Arguments& arguments, size_t& automatic) {
  int64_t position = 0;
  if (name.empty() || parse_integer(name, 10, position)) {
    if (name.empty()) position = static_cast<int64_t>(automatic++);
    const bool is_there = position >= 0 && static_cast<size_t>(position) < arguments.positional.size();
    return is_there ? &arguments.positional[static_cast<size_t>(position)] : nullptr;
  }
  for (const auto& [key, given] : arguments.keywords)
    if (key == name) return &given;
  if (name.find_first_of(":!.[") != std::string::npos) runtime.unsupported("a format specification");
  return nullptr;
}

}  // namespace

Value string_ljust(Runtime& r, const Value& s, Arguments& a) {
  return justify(r, s, a, 0);
}
Value string_rjust(Runtime& r, const Value& s, Arguments& a) {
  return justify(r, s, a, 1);
}
Value string_center(Runtime& r, const Value& s, Arguments& a) {
  return justify(r, s, a, 2);
}
Value string_zfill(Runtime& r, const Value& s, Arguments& a) {
  return justify(r, s, a, 3);
}

// "{} {0} {name}" without format specifications.
Value string_format(Runtime& runtime, const Value& self, Arguments& arguments) {
  const std::string& text = self.string();
  std::string out;
  size_t automatic = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_brace = text[i] == '{' || text[i] == '}';
    if (!is_brace || (i + 1 < text.size() && text[i + 1] == text[i])) {
      out += text[i];
      i += is_brace ? 1 : 0;
      continue;
    }
    if (text[i] == '}') runtime.fail("format(): single '}'");
    const size_t end = text.find('}', i);
    if (end == std::string::npos) runtime.fail("format(): '{' without '}'");
    const std::string name = text.substr(i + 1, end - i - 1);
    const Value* value = find_field(runtime, name, arguments, automatic);
    if (value == nullptr) runtime.fail(fmt::format("format(): nothing for '{{{}}}'", name));
    append_text(runtime, *value, out);
    i = end;
  }
  return runtime.text(std::move(out));
}

}  // namespace quadrille::tokenizer::jinja
