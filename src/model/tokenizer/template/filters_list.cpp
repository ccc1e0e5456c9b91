// SPDX-License-Identifier: Apache-2.0
// Filters of lists and dicts, and those that only choose a value.
#include <algorithm>
#include <array>

#include "model/tokenizer/template/builtins.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"

namespace quadrille::tokenizer::jinja {
namespace {

Value length(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader(runtime, arguments, "filter 'length'").finish();
  return Value(static_cast<int64_t>(length_of(runtime, value)));
}

Value choose_default(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'default'");
  const Value* otherwise = reader.next("default_value");
  const bool when_false = reader.boolean("boolean", false);
  reader.finish();
  if (!value.is_undefined() && (!when_false || value.truth())) return value;
  return otherwise == nullptr ? runtime.text("") : *otherwise;
}

// a.b.0 of a value: names and indices.
Value deep_attribute(Runtime& runtime, Value value, const Value& path) {
  if (!path.is_string()) return index_value(runtime, value, path);
  size_t begin = 0;
  const std::string& text = path.string();
  while (true) {
    const size_t end = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    int64_t number = 0;
    const bool is_number =
        !part.empty() && part.find_first_not_of("0123456789") == std::string::npos && parse_integer(part, 10, number);
    value = index_value(runtime, value, is_number ? Value(number) : runtime.text(part));
    if (end == text.size()) return value;
    begin = end + 1;
  }
}

Value join(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'join'");
  const Value* separator = reader.next("d");
  const Value* attribute = reader.next("attribute");
  reader.finish();
  const std::string between = separator == nullptr ? "" : text_of(runtime, *separator);
  std::string out;
  bool is_first = true;
  for (const Value& item : elements_of(runtime, value)) {
    if (!is_first) out += between;
    is_first = false;
    runtime.charge_bytes(between.size());
    append_text(runtime,
                attribute == nullptr || attribute->is_none() ? item : deep_attribute(runtime, item, *attribute), out);
  }
  return runtime.text(std::move(out));
}

Value items(Runtime& runtime, const Value& value, Arguments&) {
  std::vector<Value> out;
  if (value.is_undefined()) return runtime.list({});
  if (!value.is_dict()) runtime.fail(fmt::format("filter 'items' needs a dict, found {}", value.type_name()));
  for (const auto& [key, item] : value.dict().items) out.push_back(runtime.tuple({key, item}));
  return runtime.list(std::move(out));
}

Value list(Runtime& runtime, const Value& value, Arguments&) {
  return runtime.list(elements_of(runtime, value));
}

Value first(Runtime& runtime, const Value& value, Arguments&) {
  const auto elements = elements_of(runtime, value);
  return elements.empty() ? runtime.undefined("there is no first item, the sequence is empty") : elements.front();
}
Value last(Runtime& runtime, const Value& value, Arguments&) {
  const auto elements = elements_of(runtime, value);
  return elements.empty() ? runtime.undefined("there is no last item, the sequence is empty") : elements.back();
}

Value reverse(Runtime& runtime, const Value& value, Arguments&) {
  auto elements = elements_of(runtime, value);
  std::reverse(elements.begin(), elements.end());
  if (!value.is_string()) return runtime.list(std::move(elements));
  std::string text;
  for (const Value& element : elements) text += element.string();
  return runtime.text(std::move(text));
}

Value sum(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'sum'");
  const Value* attribute = reader.next("attribute");
  const Value* start = reader.next("start");
  reader.finish();
  Value total = start == nullptr ? Value(int64_t{0}) : *start;
  for (const Value& item : elements_of(runtime, value))
    total = binary_operation(
        runtime, "+", total,
        attribute == nullptr || attribute->is_none() ? item : deep_attribute(runtime, item, *attribute));
  return total;
}

// Texts without case unless asked: how Jinja sorts and compares.
Value sort_key(Runtime& runtime, const Value& item, const Value* attribute, bool case_sensitive) {
  const Value key = attribute == nullptr || attribute->is_none() ? item : deep_attribute(runtime, item, *attribute);
  return key.is_string() && !case_sensitive ? runtime.text(lower_text(key.string())) : key;
}

std::vector<Value> sorted(Runtime& runtime, std::vector<Value> elements, const Value* attribute, bool case_sensitive,
                          bool reversed) {
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value& item : elements) keyed.emplace_back(sort_key(runtime, item, attribute, case_sensitive), item);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    const int order = compare(runtime, a.first, b.first, "<");
    return reversed ? order > 0 : order < 0;
  });
  for (size_t i = 0; i < keyed.size(); ++i) elements[i] = keyed[i].second;
  return elements;
}

Value sort(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'sort'");
  const bool reversed = reader.boolean("reverse", false);
  const bool case_sensitive = reader.boolean("case_sensitive", false);
  const Value* attribute = reader.next("attribute");
  reader.finish();
  return runtime.list(sorted(runtime, elements_of(runtime, value), attribute, case_sensitive, reversed));
}

Value dictsort(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'dictsort'");
  const bool case_sensitive = reader.boolean("case_sensitive", false);
  const std::string by = reader.string("by", "key");
  const bool reversed = reader.boolean("reverse", false);
  reader.finish();
  Arguments none;
  const Value pairs = items(runtime, value, none);
  const Value place(int64_t{by == "value" ? 1 : 0});
  return runtime.list(sorted(runtime, pairs.list().items, &place, case_sensitive, reversed));
}

Value unique(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'unique'");
  const bool case_sensitive = reader.boolean("case_sensitive", false);
  const Value* attribute = reader.next("attribute");
  reader.finish();
  std::vector<Value> keys;
  std::vector<Value> out;
  for (const Value& item : elements_of(runtime, value)) {
    const Value key = sort_key(runtime, item, attribute, case_sensitive);
    if (std::any_of(keys.begin(), keys.end(), [&](const Value& other) { return equal(runtime, key, other); })) continue;
    keys.push_back(key);
    out.push_back(item);
  }
  return runtime.list(std::move(out));
}

Value extreme(Runtime& runtime, const Value& value, Arguments& arguments, bool largest) {
  ArgumentReader reader(runtime, arguments, "filters 'min' and 'max'");
  const bool case_sensitive = reader.boolean("case_sensitive", false);
  const Value* attribute = reader.next("attribute");
  reader.finish();
  const auto elements = elements_of(runtime, value);
  if (elements.empty()) return runtime.undefined("there is no item, the sequence is empty");
  size_t best = 0;
  Value best_key = sort_key(runtime, elements[0], attribute, case_sensitive);
  for (size_t i = 1; i < elements.size(); ++i) {
    const Value key = sort_key(runtime, elements[i], attribute, case_sensitive);
    const int order = compare(runtime, key, best_key, "<");
    if (largest ? order <= 0 : order >= 0) continue;
    best = i;
    best_key = key;
  }
  return elements[best];
}
Value minimum(Runtime& r, const Value& v, Arguments& a) {
  return extreme(r, v, a, false);
}
Value maximum(Runtime& r, const Value& v, Arguments& a) {
  return extreme(r, v, a, true);
}

// map(attribute=..., default=...) or map('filter', arguments...).
Value map(Runtime& runtime, const Value& value, Arguments& arguments) {
  std::vector<Value> out;
  if (!value.truth()) return runtime.list({});  // none and false, too
  if (arguments.positional.empty()) {
    ArgumentReader reader(runtime, arguments, "filter 'map'");
    const Value& attribute = reader.need("attribute");
    const Value* otherwise = reader.next("default");
    reader.finish();
    for (const Value& item : elements_of(runtime, value)) {
      Value mapped = deep_attribute(runtime, item, attribute);
      out.push_back(mapped.is_undefined() && otherwise != nullptr ? *otherwise : mapped);
    }
    return runtime.list(std::move(out));
  }
  if (!arguments.positional[0].is_string()) runtime.fail("filter 'map' needs the name of a filter");
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  for (const Value& item : elements_of(runtime, value)) {
    Arguments copy = rest;
    out.push_back(run_filter(runtime, arguments.positional[0].string(), item, copy));
  }
  return runtime.list(std::move(out));
}

Value choose(Runtime& runtime, const Value& value, Arguments& arguments, bool by_attribute, bool keep) {
  if (!value.truth()) return runtime.list({});  // none and false, too
  Arguments rest = arguments;
  Value attribute;
  if (by_attribute) {
    if (rest.positional.empty()) runtime.fail("selectattr and rejectattr need an attribute");
    attribute = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
  }
  std::string test;
  if (!rest.positional.empty()) {
    if (!rest.positional[0].is_string()) runtime.fail("select and reject need the name of a test");
    test = rest.positional[0].string();
    rest.positional.erase(rest.positional.begin());
  }
  std::vector<Value> out;
  for (const Value& item : elements_of(runtime, value)) {
    const Value tested = by_attribute ? deep_attribute(runtime, item, attribute) : item;
    Arguments copy = rest;
    if ((test.empty() ? tested.truth() : run_test(runtime, test, tested, copy)) == keep) out.push_back(item);
  }
  return runtime.list(std::move(out));
}
Value select(Runtime& r, const Value& v, Arguments& a) {
  return choose(r, v, a, false, true);
}
Value reject(Runtime& r, const Value& v, Arguments& a) {
  return choose(r, v, a, false, false);
}
Value selectattr(Runtime& r, const Value& v, Arguments& a) {
  return choose(r, v, a, true, true);
}
Value rejectattr(Runtime& r, const Value& v, Arguments& a) {
  return choose(r, v, a, true, false);
}

Value attr(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'attr'");
  const std::string& name = reader.need_string("name");
  reader.finish();
  if (value.is_dict()) return runtime.undefined(fmt::format("dict has no attribute '{}'", name));
  return attribute_of(runtime, value, name);
}

Value batch(Runtime& runtime, const Value& value, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "filter 'batch'");
  const int64_t count = reader.integer("linecount", 1);
  const Value* fill = reader.next("fill_with");
  reader.finish();
  if (count < 1 || count > 100'000) runtime.fail("filter 'batch' needs a count from 1 to 100000");
  std::vector<Value> out;
  std::vector<Value> line;
  for (const Value& item : elements_of(runtime, value)) {
    line.push_back(item);
    if (line.size() < static_cast<size_t>(count)) continue;
    out.push_back(runtime.list(std::move(line)));
    line.clear();
  }
  if (line.empty()) return runtime.list(std::move(out));
  while (fill != nullptr && !fill->is_none() && line.size() < static_cast<size_t>(count)) line.push_back(*fill);
  out.push_back(runtime.list(std::move(line)));
  return runtime.list(std::move(out));
}

struct Entry {
  std::string_view name;
  Filter filter;
};
constexpr std::array<Entry, 23> kFilters = {{
    {"length", length},
    {"count", length},
    {"default", choose_default},
    {"d", choose_default},
    {"join", join},
    {"items", items},
    {"list", list},
    {"first", first},
    {"last", last},
    {"reverse", reverse},
    {"sum", sum},
    {"sort", sort},
    {"dictsort", dictsort},
    {"unique", unique},
    {"min", minimum},
    {"max", maximum},
    {"map", map},
    {"select", select},
    {"reject", reject},
    {"selectattr", selectattr},
    {"rejectattr", rejectattr},
    {"attr", attr},
    {"batch", batch},
}};

}  // namespace

Filter find_list_filter(std::string_view name) {
  const auto place =
      std::find_if(kFilters.begin(), kFilters.end(), [&](const Entry& entry) { return entry.name == name; });
  return place == kFilters.end() ? nullptr : place->filter;
}

}  // namespace quadrille::tokenizer::jinja
