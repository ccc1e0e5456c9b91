// SPDX-License-Identifier: Apache-2.0
// Methods of Python's str, list and dict that templates call. Methods that would change a list or dict are refused,
// as transformers does. Called by access.cpp.
#pragma once

#include <optional>
#include <string_view>

#include "model/tokenizer/template/runtime.h"

namespace quadrille::tokenizer::jinja {

// value.name as something to call, nothing when its type has no such method.
std::optional<Value> find_method(Runtime& runtime, const Value& value, std::string_view name);

using StringMethod = Value (*)(Runtime&, const Value& self, Arguments&);
// Null when there is no such method. (methods_string.cpp)
StringMethod find_string_method(std::string_view name);
// (methods_format.cpp)
Value string_ljust(Runtime& runtime, const Value& self, Arguments& arguments);
Value string_rjust(Runtime& runtime, const Value& self, Arguments& arguments);
Value string_center(Runtime& runtime, const Value& self, Arguments& arguments);
Value string_zfill(Runtime& runtime, const Value& self, Arguments& arguments);
Value string_format(Runtime& runtime, const Value& self, Arguments& arguments);

}  // namespace quadrille::tokenizer::jinja
