// SPDX-License-Identifier: Apache-2.0
// Tests: what stands behind "is", and the names that select() and its kin take.
#include <algorithm>
#include <array>

#include "model/tokenizer/template/builtins.h"
#include "model/tokenizer/template/operators.h"
#include "model/tokenizer/template/text.h"

namespace quadrille::tokenizer::jinja {
namespace {

using Test = bool (*)(Runtime&, const Value&);
using OperandTest = bool (*)(Runtime&, const Value&, const Value&);

int64_t integer_of(Runtime& runtime, const Value& value) {
  if (value.is_float()) runtime.unsupported("odd, even and divisibleby of a float");
  if (!value.is_integral()) runtime.fail(fmt::format("expected an integer, found {}", value.type_name()));
  return value.integer();
}

struct TestEntry {
  std::string_view name;
  Test test;
};
constexpr std::array<TestEntry, 21> kTests = {{
    {"defined", [](Runtime&, const Value& v) { return !v.is_undefined(); }},
    {"undefined", [](Runtime&, const Value& v) { return v.is_undefined(); }},
    {"none", [](Runtime&, const Value& v) { return v.is_none(); }},
    {"boolean", [](Runtime&, const Value& v) { return v.is_bool(); }},
    {"true", [](Runtime&, const Value& v) { return v.is_bool() && v.boolean(); }},
    {"false", [](Runtime&, const Value& v) { return v.is_bool() && !v.boolean(); }},
    {"integer", [](Runtime&, const Value& v) { return v.is_int(); }},
    {"float", [](Runtime&, const Value& v) { return v.is_float(); }},
    {"number", [](Runtime&, const Value& v) { return v.is_number(); }},
    {"string", [](Runtime&, const Value& v) { return v.is_string(); }},
    {"mapping", [](Runtime&, const Value& v) { return v.is_dict(); }},
    {"sequence",
     [](Runtime&, const Value& v) { return v.is_undefined() || v.is_string() || v.is_list() || v.is_dict(); }},
    {"iterable",
     [](Runtime&, const Value& v) {
       return v.is_undefined() || v.is_string() || v.is_list() || v.is_dict() || v.is_loop();
     }},
    {"callable", [](Runtime&, const Value& v) { return v.is_callable() || v.is_undefined(); }},
    {"odd", [](Runtime& r, const Value& v) { return integer_of(r, v) % 2 != 0; }},
    {"even", [](Runtime& r, const Value& v) { return integer_of(r, v) % 2 == 0; }},
    {"lower",
     [](Runtime& r, const Value& v) {
       const std::string t = text_of(r, v);
       return lower_text(t) == t && upper_text(t) != t;
     }},
    {"upper",
     [](Runtime& r, const Value& v) {
       const std::string t = text_of(r, v);
       return upper_text(t) == t && lower_text(t) != t;
     }},
    {"escaped", [](Runtime&, const Value&) { return false; }},
    {"filter",
     [](Runtime&, const Value& v) {
       return v.is_string() && (find_text_filter(v.string()) || find_list_filter(v.string()));
     }},
    {"None", [](Runtime&, const Value& v) { return v.is_none(); }},
}};

struct OperandEntry {
  std::string_view name;
  OperandTest test;
};
constexpr std::array<OperandEntry, 21> kOperandTests = {{
    {"==", equal},
    {"eq", equal},
    {"equalto", equal},
    {"!=", [](Runtime& r, const Value& a, const Value& b) { return !equal(r, a, b); }},
    {"ne", [](Runtime& r, const Value& a, const Value& b) { return !equal(r, a, b); }},
    {"<", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, "<") < 0; }},
    {"lt", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, "<") < 0; }},
    {"lessthan", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, "<") < 0; }},
    {"<=", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, "<=") <= 0; }},
    {"le", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, "<=") <= 0; }},
    {">", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, ">") > 0; }},
    {"gt", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, ">") > 0; }},
    {"greaterthan", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, ">") > 0; }},
    {">=", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, ">=") >= 0; }},
    {"ge", [](Runtime& r, const Value& a, const Value& b) { return compare(r, a, b, ">=") >= 0; }},
    {"in", [](Runtime& r, const Value& a, const Value& b) { return contains(r, b, a); }},
    {"sameas", [](Runtime&, const Value& a, const Value& b) { return a.is_same(b); }},
    {"divisibleby",
     [](Runtime& r, const Value& a, const Value& b) {
       const int64_t divisor = integer_of(r, b);
       if (divisor == 0) r.fail("division by zero");
       return divisor == -1 || integer_of(r, a) % divisor == 0;
     }},
    {"contains", [](Runtime& r, const Value& a, const Value& b) { return contains(r, a, b); }},
    {"startingwith",
     [](Runtime&, const Value& a, const Value& b) {
       return a.is_string() && b.is_string() && a.string().starts_with(b.string());
     }},
    {"endingwith", [](Runtime&, const Value& a,
                      const Value& b) { return a.is_string() && b.is_string() && a.string().ends_with(b.string()); }},
}};

}  // namespace

bool run_test(Runtime& runtime, std::string_view name, const Value& value, Arguments& arguments) {
  runtime.charge(1);
  ArgumentReader reader(runtime, arguments, fmt::format("test '{}'", name));
  const auto plain =
      std::find_if(kTests.begin(), kTests.end(), [&](const TestEntry& entry) { return entry.name == name; });
  if (plain != kTests.end()) {
    reader.finish();
    return plain->test(runtime, value);
  }
  const auto binary = std::find_if(kOperandTests.begin(), kOperandTests.end(),
                                   [&](const OperandEntry& entry) { return entry.name == name; });
  if (binary == kOperandTests.end()) runtime.unsupported(fmt::format("the test '{}'", name));
  const Value& operand = reader.need("other");
  reader.finish();
  return binary->test(runtime, value, operand);
}

}  // namespace quadrille::tokenizer::jinja
