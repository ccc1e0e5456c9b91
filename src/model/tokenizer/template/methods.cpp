// SPDX-License-Identifier: Apache-2.0
// Methods of dicts, lists and loops; those of strings are in methods_string.cpp.
#include "model/tokenizer/template/methods.h"

#include <algorithm>
#include <array>

#include "model/tokenizer/template/operators.h"

namespace quadrille::tokenizer::jinja {
namespace {

using Method = Value (*)(Runtime&, const Value& self, Arguments&);

struct Entry {
  std::string_view name;
  Method method;
};

Value dict_get(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "get()");
  const Value* found = self.dict().find(reader.need("key"));
  const Value* otherwise = reader.next("default");
  reader.finish();
  return found != nullptr ? *found : otherwise != nullptr ? *otherwise : Value(None{});
}

Value dict_list(Runtime& runtime, const Value& self, Arguments& arguments, bool keys, bool values) {
  ArgumentReader(runtime, arguments, "items(), keys() and values()").finish();
  std::vector<Value> out;
  for (const auto& [key, value] : self.dict().items)
    out.push_back(keys && values ? runtime.tuple({key, value}) : keys ? key : value);
  return runtime.list(std::move(out));
}
Value dict_items(Runtime& r, const Value& self, Arguments& a) {
  return dict_list(r, self, a, true, true);
}
Value dict_keys(Runtime& r, const Value& self, Arguments& a) {
  return dict_list(r, self, a, true, false);
}
Value dict_values(Runtime& r, const Value& self, Arguments& a) {
  return dict_list(r, self, a, false, true);
}
Value copy(Runtime&, const Value& self, Arguments&) {
  return self;
}

Value list_index(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "index()");
  const Value& wanted = reader.need("value");
  reader.finish();
  const auto& items = self.list().items;
  for (size_t i = 0; i < items.size(); ++i)
    if (equal(runtime, items[i], wanted)) return Value(static_cast<int64_t>(i));
  runtime.fail("index(): the value is not in the list");
}

Value list_count(Runtime& runtime, const Value& self, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "count()");
  const Value& wanted = reader.need("value");
  reader.finish();
  const auto& items = self.list().items;
  return Value(static_cast<int64_t>(
      std::count_if(items.begin(), items.end(), [&](const Value& item) { return equal(runtime, item, wanted); })));
}

Value loop_cycle(Runtime& runtime, const Value& self, Arguments& arguments) {
  if (arguments.positional.empty()) runtime.fail("cycle() needs values");
  return arguments.positional[self.loop().index % arguments.positional.size()];
}

Value loop_changed(Runtime& runtime, const Value& self, Arguments& arguments) {
  Loop& loop = self.loop();
  bool same = loop.index > 0 && loop.last_changed.size() == arguments.positional.size();
  for (size_t i = 0; same && i < loop.last_changed.size(); ++i)
    same = equal(runtime, loop.last_changed[i], arguments.positional[i]);
  loop.last_changed = arguments.positional;
  return Value(!same);
}

constexpr std::array<Entry, 5> kDictMethods = {
    {{"get", dict_get}, {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}, {"copy", copy}}};
constexpr std::array<Entry, 3> kListMethods = {{{"index", list_index}, {"count", list_count}, {"copy", copy}}};
constexpr std::array<Entry, 2> kLoopMethods = {{{"cycle", loop_cycle}, {"changed", loop_changed}}};
constexpr std::array<std::string_view, 6> kDictChanges = {"clear",      "pop",    "popitem",
                                                          "setdefault", "update", "fromkeys"};
constexpr std::array<std::string_view, 8> kListChanges = {"append", "clear",  "extend",  "insert",
                                                          "pop",    "remove", "reverse", "sort"};

template <size_t n>
Method find_in(const std::array<Entry, n>& entries, std::string_view name) {
  const auto place =
      std::find_if(entries.begin(), entries.end(), [&](const Entry& entry) { return entry.name == name; });
  return place == entries.end() ? nullptr : place->method;
}

template <size_t n>
bool is_in(const std::array<std::string_view, n>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Value refuse_change(Runtime& runtime, const Value& self, Arguments&) {
  runtime.fail(fmt::format("a template may not change a {}; use namespace() and +", self.type_name()));
}

Method method_of(const Value& value, std::string_view name) {
  if (value.is_string()) return find_string_method(name);
  if (value.is_loop()) return find_in(kLoopMethods, name);
  if (value.is_dict()) return is_in(kDictChanges, name) ? refuse_change : find_in(kDictMethods, name);
  if (!value.is_list()) return nullptr;
  if (!value.is_tuple() && is_in(kListChanges, name)) return refuse_change;
  return name == "copy" && value.is_tuple() ? nullptr : find_in(kListMethods, name);
}

}  // namespace

std::optional<Value> find_method(Runtime& runtime, const Value& value, std::string_view name) {
  const Method method = method_of(value, name);
  if (method == nullptr) return std::nullopt;
  return runtime.callable(
      std::string(name),
      [self = value, method](Runtime& r, Arguments& arguments) { return method(r, self, arguments); },
      value.depth() + 1);
}

}  // namespace quadrille::tokenizer::jinja
