// SPDX-License-Identifier: Apache-2.0
// The one door to the filters.
#include "model/tokenizer/template/builtins.h"

namespace quadrille::tokenizer::jinja {

Value run_filter(Runtime& runtime, std::string_view name, const Value& value, Arguments& arguments) {
  runtime.charge(1);
  if (const Filter filter = find_text_filter(name)) return filter(runtime, value, arguments);
  if (const Filter filter = find_list_filter(name)) return filter(runtime, value, arguments);
  runtime.unsupported(fmt::format("the filter '{}'", name));
}

}  // namespace quadrille::tokenizer::jinja
