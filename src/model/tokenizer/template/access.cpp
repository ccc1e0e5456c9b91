// SPDX-License-Identifier: Apache-2.0
// Indices, slices and attributes. As in Jinja, value.name asks for an attribute first and value[name] for an element.
#include <algorithm>

#include "model/tokenizer/template/methods.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer::jinja {
namespace {

Value missing(Runtime& runtime, const Value& value, std::string_view name) {
  return runtime.undefined(fmt::format("{} has no attribute or element '{}'", value.type_name(), name));
}

Value character_at(Runtime& runtime, const Value& value, int64_t index) {
  const std::string& text = value.string();
  runtime.charge(text.size() / 64);
  const auto count = static_cast<int64_t>(count_characters(text));
  if (index < 0) index += count;
  if (index < 0 || index >= count) return missing(runtime, value, fmt::format("{}", index));
  size_t position = 0;
  for (int64_t i = 0; i < index; ++i) position += character_length(text[position]);
  return runtime.text(text.substr(position, character_length(text[position])));
}

Value loop_attribute(Runtime& runtime, const Value& value, std::string_view name) {
  Loop& loop = value.loop();
  const auto index = static_cast<int64_t>(loop.index);
  const auto count = static_cast<int64_t>(loop.items.size());
  if (name == "index") return Value(index + 1);
  if (name == "index0") return Value(index);
  if (name == "revindex") return Value(count - index);
  if (name == "revindex0") return Value(count - index - 1);
  if (name == "first") return Value(index == 0);
  if (name == "last") return Value(index + 1 == count);
  if (name == "length") return Value(count);
  if (name == "depth") return Value(static_cast<int64_t>(loop.depth0) + 1);
  if (name == "depth0") return Value(static_cast<int64_t>(loop.depth0));
  if (name == "previtem")
    return index > 0 ? loop.items[loop.index - 1] : runtime.undefined("there is no previous item");
  if (name == "nextitem")
    return index + 1 < count ? loop.items[loop.index + 1] : runtime.undefined("there is no next item");
  return missing(runtime, value, name);
}

// Python's slice.indices(): where a slice of `count` elements begins and stops.
struct Slice {
  int64_t begin;
  int64_t end;
  int64_t step;
};

int64_t bound(Runtime& runtime, const Value* value, int64_t otherwise, int64_t count, int64_t low, int64_t high) {
  if (value == nullptr || value->is_none()) return otherwise;
  runtime.require_defined(*value);
  if (!value->is_integral()) runtime.fail(fmt::format("a slice needs integers, found {}", value->type_name()));
  int64_t index = value->integer();
  if (index < 0) index = index < -count ? low : index + count;
  return std::clamp(index, low, high);
}

Slice resolve_slice(Runtime& runtime, int64_t count, const Value* from, const Value* to, const Value* step_value) {
  int64_t step = 1;
  if (step_value != nullptr && !step_value->is_none()) {
    if (!step_value->is_integral()) runtime.fail("a slice needs integers");
    step = step_value->integer();
  }
  if (step == 0) runtime.fail("the step of a slice cannot be 0");
  const int64_t low = step > 0 ? 0 : -1;
  const int64_t high = step > 0 ? count : count - 1;
  return {bound(runtime, from, step > 0 ? 0 : count - 1, count, low, high),
          bound(runtime, to, step > 0 ? count : -1, count, low, high), std::clamp(step, -count - 1, count + 1)};
}

}  // namespace

Value index_value(Runtime& runtime, const Value& value, const Value& key) {
  runtime.require_defined(value);
  if (value.is_dict()) {
    if (const Value* found = value.dict().find(key)) return *found;
  } else if (value.is_list() && key.is_integral()) {
    const auto& items = value.list().items;
    const auto count = static_cast<int64_t>(items.size());
    const int64_t index = key.integer() < 0 ? key.integer() + count : key.integer();
    if (index >= 0 && index < count) return items[static_cast<size_t>(index)];
  } else if (value.is_string() && key.is_integral()) {
    return character_at(runtime, value, key.integer());
  }
  if (key.is_string()) return attribute_of(runtime, value, key.string());
  return missing(runtime, value, key.is_undefined() ? "undefined" : text_of(runtime, key));
}

Value slice_value(Runtime& runtime, const Value& value, const Value* from, const Value* to, const Value* step) {
  runtime.require_defined(value);
  if (!value.is_string() && !value.is_list()) return missing(runtime, value, "a slice");
  std::vector<std::string_view> characters;
  if (value.is_string()) {
    runtime.charge(value.string().size());
    characters = characters_of(value.string());
  }
  const auto count = static_cast<int64_t>(value.is_string() ? characters.size() : value.list().items.size());
  const Slice slice = resolve_slice(runtime, count, from, to, step);
  std::string text;
  std::vector<Value> items;
  for (int64_t i = slice.begin; slice.step > 0 ? i < slice.end : i > slice.end; i += slice.step) {
    if (value.is_string()) {
      text += characters[static_cast<size_t>(i)];
    } else {
      items.push_back(value.list().items[static_cast<size_t>(i)]);
    }
  }
  return value.is_string() ? runtime.text(std::move(text)) : runtime.list(std::move(items), value.is_tuple());
}

Value attribute_of(Runtime& runtime, const Value& value, const std::string& name) {
  runtime.require_defined(value);
  if (value.is_namespace()) {
    const auto place = value.ns().attributes.find(name);
    return place == value.ns().attributes.end() ? missing(runtime, value, name) : place->second;
  }
  if (value.is_loop()) {
    Value attribute = loop_attribute(runtime, value, name);
    if (!attribute.is_undefined() || name == "previtem" || name == "nextitem") return attribute;
  }
  if (std::optional<Value> method = find_method(runtime, value, name)) return *method;
  if (value.is_dict())
    if (const Value* found = value.dict().find(std::string_view(name))) return *found;
  return missing(runtime, value, name);
}

}  // namespace quadrille::tokenizer::jinja
