// SPDX-License-Identifier: Apache-2.0
// A template can neither hang nor exhaust memory or stack.
#include <gtest/gtest.h>

#include "model/tokenizer/chat_template.h"

namespace quadrille::tokenizer {
namespace {

using nlohmann::ordered_json;

Error failure_of(const std::string& source, const TemplateLimits& limits = {}) {
  const auto parsed = ChatTemplate::parse(source, "t");
  if (!parsed) return parsed.error();
  const auto text = parsed->render(ordered_json::array(), false, {}, limits);
  EXPECT_FALSE(text.ok()) << source;
  return text.ok() ? Error{} : text.error();
}

void expect_capacity(const std::string& source, const TemplateLimits& limits = {}) {
  const Error error = failure_of(source, limits);
  EXPECT_EQ(error.code, ErrorCode::kCapacity) << source << "\n" << error.message;
}

std::string repeated(const std::string& part, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += part;
  return out;
}

TEST(TemplateLimits, Steps) {
  const std::string loop = "{% for a in range(100000) %}";
  expect_capacity(repeated(loop, 3) + repeated("{% endfor %}", 3));
  expect_capacity("{% for a in range(1000000) %}{% endfor %}");
  TemplateLimits few;
  few.steps = 1000;
  expect_capacity("{% for a in range(500) %}{{ a }}{% endfor %}", few);
}

TEST(TemplateLimits, Memory) {
  expect_capacity(
      "{% set ns = namespace(a='x' * 1000) %}{% for i in range(100) %}{% set ns.a = ns.a + ns.a %}{% endfor %}");
  expect_capacity("{% set ns = namespace(a=[1]) %}{% for i in range(100) %}{% set ns.a = ns.a + ns.a %}{% endfor %}");
  expect_capacity("{{ 'x' * 1000000000 }}");
  expect_capacity("{{ [1] * 1000000000 }}");
  expect_capacity("{% set a = 'x' * 1000000 %}{% for i in range(1000) %}{{ a }}{% endfor %}");
  expect_capacity("{{ ('x' * 10000000).replace('x', 'y' * 10000000) }}");
  expect_capacity("{{ ('x' * 10000000) | join('y' * 10000000) }}");
}

// Values that share their parts are small, their texts are not.
TEST(TemplateLimits, TextsOfSharedValues) {
  const std::string doubling =
      "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}";
  expect_capacity(doubling + "{{ ns.a }}");
  expect_capacity(doubling + "{{ ns.a | tojson }}");
  const std::string two =
      "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, "
      "ns.b] %}{% endfor %}";
  expect_capacity(two + "{{ ns.a == ns.b }}");
  expect_capacity(two + "{{ ns.a < ns.b }}");
}

TEST(TemplateLimits, Stack) {
  expect_capacity("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}");
  expect_capacity("{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}");
  for (const auto& [open, close] :
       {std::pair<std::string, std::string>{"(", ")"}, {"[", "]"}, {"-", ""}, {"not ", ""}}) {
    const Error error = failure_of("{{ " + repeated(open, 100'000) + "1" + repeated(close, 100'000) + " }}");
    EXPECT_EQ(error.code, ErrorCode::kInvalidData) << error.message;
  }
  EXPECT_FALSE(ChatTemplate::parse(repeated("{% if 1 %}", 100'000) + repeated("{% endif %}", 100'000), "t").ok());
  for (const char* chain : {" + 1", " ~ 1", " and 1", " if 1 else 1", ".a", "[0]", "()", "|list"})
    EXPECT_FALSE(ChatTemplate::parse("{{ 1" + repeated(chain, 100'000) + " }}", "t").ok()) << chain;
}

// What refers to itself is freed (the leak checker looks).
TEST(TemplateLimits, Cycles) {
  const auto parsed = ChatTemplate::parse(
      "{% set ns = namespace() %}{% set ns.me = ns %}{% macro f() %}{{ ns is defined }}{% endmacro %}{% set ns.f = f %}"
      "{% for i in range(3) %}{% set ns.loop = [loop] %}{{ loop.changed(loop) }}{% macro g() %}{{ g is defined }}{% "
      "endmacro %}{{ g() }}{% endfor %}{{ f() }}",
      "t");
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(*parsed->render(ordered_json::array(), false, {}), "TrueTrueFalseTrueFalseTrueTrue");
}

TEST(TemplateLimits, LongConversationsFit) {
  const auto parsed = ChatTemplate::parse(
      "{% for m in messages %}{{ '<|' + m.role + '|>' + m['content'] | trim + '\n' }}{% endfor %}", "t");
  ordered_json messages = ordered_json::array();
  for (int i = 0; i < 2000; ++i) messages.push_back({{"role", "user"}, {"content", std::string(2000, 'x')}});
  const auto text = parsed->render(messages, true, {});
  ASSERT_TRUE(text.ok()) << text.error().message;
  EXPECT_EQ(text->size(), 2000u * (2000 + 9));
}

}  // namespace
}  // namespace quadrille::tokenizer
