// SPDX-License-Identifier: Apache-2.0
// Templates against Jinja's own results (tests/data/tokenizers/make_cases.py), one construct or corner each.
#include <gtest/gtest.h>

#include <fstream>

#include "model/tokenizer/chat_template.h"
#include "support/golden.h"

namespace quadrille::tokenizer {
namespace {

using nlohmann::ordered_json;

TEST(Template, CasesAsJinjaHasThem) {
  std::ifstream file(quadrille::testing::data_path("tokenizers/template_cases.jsonl"));
  std::string line;
  ASSERT_TRUE(std::getline(file, line));
  const ordered_json input = ordered_json::parse(line);
  int cases = 0;
  for (; std::getline(file, line); ++cases) {
    const ordered_json record = ordered_json::parse(line);
    SCOPED_TRACE(record["template"].get<std::string>());
    const auto parsed = ChatTemplate::parse(record["template"].get<std::string>(), "case");
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    const auto text = parsed->render(input["messages"], true, input["variables"]);
    if (record.contains("error")) {
      EXPECT_FALSE(text.ok());
      continue;
    }
    ASSERT_TRUE(text.ok()) << text.error().message;
    EXPECT_EQ(*text, record["rendered"].get<std::string>());
  }
  EXPECT_GT(cases, 30);
}

std::string rendered(const std::string& source, const ordered_json& variables = {}) {
  const auto parsed = ChatTemplate::parse(source, "t");
  if (!parsed) return "parse: " + parsed.error().message;
  const auto text = parsed->render(ordered_json::array(), false, variables);
  return text ? *text : "render: " + text.error().message;
}

TEST(Template, VariablesOfTransformers) {
  EXPECT_EQ(rendered("{{ tools is none }}{{ documents }}{{ messages }}{{ add_generation_prompt }}"), "TrueNone[]False");
  EXPECT_EQ(rendered("{{ tools | length }}", {{"tools", {1, 2}}}), "2");
  EXPECT_EQ(rendered("{{ strftime_now('%Y') | length }}"), "4");
}

TEST(Template, NewlinesOfAllKinds) {
  EXPECT_EQ(rendered("a\r\nb\rc\n"), "a\nb\nc");
  EXPECT_EQ(rendered("a\n\n"), "a\n");
  EXPECT_EQ(rendered("{{ 'x\r\ny' }}"), "x\ny");
}

TEST(Template, ErrorsNameLineAndConstruct) {
  EXPECT_EQ(rendered("a\n{% include 'x' %}"), "parse: t: line 2: {% include %} is not supported");
  EXPECT_EQ(rendered("a\n\n{{ x | nosuch }}"), "render: t: line 3: the filter 'nosuch' is not supported");
  EXPECT_EQ(rendered("{{ x is nosuch }}"), "render: t: line 1: the test 'nosuch' is not supported");
  EXPECT_EQ(rendered("{% frob %}"), "parse: t: line 1: unknown tag {% frob %}");
  EXPECT_EQ(rendered("\n{% for x in y %}"), "parse: t: line 2: {% for %} without {% endfor %}");
  EXPECT_EQ(rendered("{{ 1 +\n }}"), "parse: t: line 2: expected an expression, found the end of the tag");
  EXPECT_EQ(rendered("{{ x"), "parse: t: line 1: '{{' without '}}'");
  EXPECT_EQ(rendered("\n\n{{ raise_exception('no') }}"), "render: t: line 3: no");
  EXPECT_EQ(rendered("{{ x.y.z }}"), "render: t: line 1: 'x' is undefined");
  EXPECT_EQ(rendered("{% macro f(a) %}{% endmacro %}\n{{ f(1, 2) }}"),
            "render: t: line 2: macro 'f' takes at most 1 arguments, 2 are given");
  EXPECT_EQ(rendered("{% for x in y recursive %}{% endfor %}"), "parse: t: line 1: a recursive loop is not supported");
}

TEST(Template, BadInput) {
  EXPECT_FALSE(ChatTemplate::parse("\xFF", "t").ok());
  EXPECT_FALSE(ChatTemplate::parse(std::string(5 << 20, ' '), "t").ok());
  const auto parsed = ChatTemplate::parse("{{ messages }}", "t");
  EXPECT_FALSE(parsed->render(ordered_json::array(), false, ordered_json::array({1})).ok());
  EXPECT_FALSE(parsed->render(ordered_json("\xFF"), false, {}).ok());
  ordered_json deep;
  for (int i = 0; i < 1000; ++i) deep = ordered_json::array({deep});
  EXPECT_FALSE(parsed->render(deep, false, {}).ok());
}

}  // namespace
}  // namespace quadrille::tokenizer
