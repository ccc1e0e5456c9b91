// SPDX-License-Identifier: Apache-2.0
// Functions that every template sees: Jinja's own and the two of transformers.
#include <ctime>

#include <algorithm>
#include <array>

#include "model/tokenizer/template/builtins.h"
#include "model/tokenizer/template/operators.h"

namespace quadrille::tokenizer::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;

Value raise_exception(Runtime& runtime, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "raise_exception()");
  const std::string message = text_of(runtime, reader.need("message"));
  reader.finish();
  runtime.fail(message);
}

// datetime.now().strftime(format)
Value strftime_now(Runtime& runtime, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "strftime_now()");
  const std::string format = reader.need_string("format");
  reader.finish();
  if (format.size() > 256) runtime.unsupported("a date format of more than 256 bytes");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 4096> text;
  const size_t length = std::strftime(text.data(), text.size(), format.c_str(), &local);
  return runtime.text(std::string(text.data(), length));
}

Value range(Runtime& runtime, Arguments& arguments) {
  ArgumentReader reader(runtime, arguments, "range()");
  std::array<int64_t, 3> bounds{};
  size_t given = 0;
  for (; given < 3; ++given) {
    const Value* value = reader.next("");
    if (value == nullptr) break;
    runtime.require_defined(*value);
    if (!value->is_integral()) runtime.fail(fmt::format("range() needs integers, found {}", value->type_name()));
    bounds[given] = value->integer();
  }
  reader.finish();
  if (given == 0) runtime.fail("range() needs an argument");
  const int64_t begin = given == 1 ? 0 : bounds[0];
  const int64_t end = given == 1 ? bounds[0] : bounds[1];
  const int64_t step = given == 3 ? bounds[2] : 1;
  if (step == 0) runtime.fail("range(): the step cannot be 0");
  std::vector<Value> items;
  for (__int128 i = begin; step > 0 ? i < end : i > end; i += step) {
    if (items.size() >= static_cast<size_t>(kMaxRange))
      fail_at(runtime.line(), ErrorCode::kCapacity, fmt::format("range() of more than {} items", kMaxRange));
    items.emplace_back(static_cast<int64_t>(i));
  }
  return runtime.list(std::move(items));
}

std::vector<std::pair<Value, Value>> named_items(Runtime& runtime, Arguments& arguments) {
  std::vector<std::pair<Value, Value>> items;
  for (const Value& source : arguments.positional) {
    if (!source.is_dict()) runtime.fail(fmt::format("expected a dict, found {}", source.type_name()));
    items.insert(items.end(), source.dict().items.begin(), source.dict().items.end());
  }
  for (const auto& [name, value] : arguments.keywords) items.emplace_back(runtime.text(name), value);
  return items;
}

Value make_dict(Runtime& runtime, Arguments& arguments) {
  return runtime.dict(named_items(runtime, arguments));
}

Value make_namespace(Runtime& runtime, Arguments& arguments) {
  Value made = runtime.make_namespace();
  for (const auto& [key, value] : named_items(runtime, arguments)) {
    if (!key.is_string()) runtime.fail("namespace() needs names");
    made.ns().attributes[key.string()] = value;
  }
  return made;
}

struct Entry {
  std::string_view name;
  Value (*function)(Runtime&, Arguments&);
};
constexpr std::array<Entry, 5> kFunctions = {{{"raise_exception", raise_exception},
                                              {"strftime_now", strftime_now},
                                              {"range", range},
                                              {"dict", make_dict},
                                              {"namespace", make_namespace}}};
constexpr std::array<std::string_view, 3> kUnsupported = {"cycler", "joiner", "lipsum"};

}  // namespace

std::optional<Value> find_function(Runtime& runtime, std::string_view name) {
  if (std::find(kUnsupported.begin(), kUnsupported.end(), name) != kUnsupported.end())
    runtime.unsupported(fmt::format("the function '{}'", name));
  const auto place =
      std::find_if(kFunctions.begin(), kFunctions.end(), [&](const Entry& entry) { return entry.name == name; });
  if (place == kFunctions.end()) return std::nullopt;
  return runtime.callable(std::string(name), place->function);
}

}  // namespace quadrille::tokenizer::jinja
