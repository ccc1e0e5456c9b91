// SPDX-License-Identifier: Apache-2.0
// What Python's operators do to values, and its texts of them. Walks over nested values count steps.
// Used by interpreter, filters, tests and methods.
#pragma once

#include <string>
#include <string_view>

#include "model/tokenizer/template/runtime.h"

namespace quadrille::tokenizer::jinja {

bool equal(Runtime& runtime, const Value& a, const Value& b);
// a < b as -1, 0, 1; fails where Python cannot order the two. `op` is named in the error.
int compare(Runtime& runtime, const Value& a, const Value& b, std::string_view op);
bool contains(Runtime& runtime, const Value& container, const Value& item);

// + - * / // % ** ~
Value binary_operation(Runtime& runtime, std::string_view op, const Value& a, const Value& b);
Value negate(Runtime& runtime, const Value& value);

// str() and repr().
std::string text_of(Runtime& runtime, const Value& value);
void append_text(Runtime& runtime, const Value& value, std::string& out);
void append_repr(Runtime& runtime, const Value& value, std::string& out);
// "%s of %d" % values, for the conversions s d i f r x and %.
std::string percent_format(Runtime& runtime, std::string_view format, const Value& values);

// The elements that a for loop sees. Fails for what cannot be iterated.
std::vector<Value> elements_of(Runtime& runtime, const Value& value);
size_t length_of(Runtime& runtime, const Value& value);

// value[key], value[from:to:step], value.name; undefined where there is nothing.
Value index_value(Runtime& runtime, const Value& value, const Value& key);
Value slice_value(Runtime& runtime, const Value& value, const Value* from, const Value* to, const Value* step);
Value attribute_of(Runtime& runtime, const Value& value, const std::string& name);

// Calls a callable with the runtime's line kept.
Value call_value(Runtime& runtime, const Value& callee, Arguments& arguments);

}  // namespace quadrille::tokenizer::jinja
