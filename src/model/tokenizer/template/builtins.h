// SPDX-License-Identifier: Apache-2.0
// Filters, tests and functions by name. Called by the interpreter.
#pragma once

#include <optional>
#include <string_view>

#include "model/tokenizer/template/runtime.h"

namespace quadrille::tokenizer::jinja {

// value | name(arguments). Fails with kUnsupported for a filter that is not there. (filters.cpp)
Value run_filter(Runtime& runtime, std::string_view name, const Value& value, Arguments& arguments);
// value is name(arguments). (tests.cpp)
bool run_test(Runtime& runtime, std::string_view name, const Value& value, Arguments& arguments);
// range, namespace, dict, raise_exception, strftime_now ... (functions.cpp)
std::optional<Value> find_function(Runtime& runtime, std::string_view name);

using Filter = Value (*)(Runtime&, const Value&, Arguments&);
// Filters of texts and numbers (filters_text.cpp), of lists and dicts (filters_list.cpp); null when there is none.
Filter find_text_filter(std::string_view name);
Filter find_list_filter(std::string_view name);

// json.dumps(value, ensure_ascii=False, indent=..., separators=..., sort_keys=...). (json_text.cpp)
struct JsonStyle {
  std::optional<std::string> indent;  // of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
  bool ascii_only = false;
};
std::string json_text(Runtime& runtime, const Value& value, const JsonStyle& style);

}  // namespace quadrille::tokenizer::jinja
