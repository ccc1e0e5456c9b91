// SPDX-License-Identifier: Apache-2.0
#include "formats/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/scratch_folder.h"

namespace quadrille::formats {
namespace {

using ::testing::HasSubstr;

std::string error_of(std::string_view text, const JsonLimits& limits = {}) {
  const auto json = parse_json(text, "f.json", limits);
  return json ? "no error" : json.error().message;
}

TEST(ParseJson, KeepsIntegersExact) {
  const auto json = parse_json(R"({"a":9007199254740993,"b":18446744073709551615,"c":-9223372036854775808})", "f");
  ASSERT_TRUE(json) << json.error().message;
  EXPECT_EQ((*json)["a"].get<int64_t>(), 9007199254740993);
  EXPECT_EQ((*json)["b"].get<uint64_t>(), 18446744073709551615u);
  EXPECT_EQ((*json)["c"].get<int64_t>(), std::numeric_limits<int64_t>::min());
}

TEST(ParseJson, BuildsTheTreeOfTheLibrary) {
  const std::string text = R"({"a":[1,[2,{"b":null}],{}],"c":{"d":[],"e":[true,false,"x\u00e9"]},"f":1.5e3})";
  const auto json = parse_json(text, "f");
  ASSERT_TRUE(json) << json.error().message;
  EXPECT_EQ(*json, Json::parse(text));
}

TEST(ParseJson, NamesFileLineAndColumnOfASyntaxError) {
  const std::string message = error_of("{\n \"a\": 1,\n \"b\": oops\n}");
  EXPECT_THAT(message, HasSubstr("f.json"));
  EXPECT_THAT(message, HasSubstr("line 3, column 7"));
}

TEST(ParseJson, RefusesWhatIsNotJson) {
  for (const char* text : {"", " ", "{", "{}}", "{} x", "[1,]", "{\"a\":01}", "NaN", "{\"a\":Infinity}", "// c\n{}",
                           "'a'", "\xEF\xBB\xBF{}", "\"\xFF\"", "\"\xC0\x80\"", "1e999"})
    EXPECT_THAT(error_of(text), HasSubstr("f.json: ")) << text;
  EXPECT_THAT(error_of(std::string_view("{}\0{}", 5)), HasSubstr("NUL"));
}

TEST(ParseJson, RefusesDuplicateKeysAtEveryLevel) {
  EXPECT_THAT(error_of(R"({"a":1,"a":2})"), HasSubstr("'a' occurs twice"));
  EXPECT_THAT(error_of(R"({"x":[{"b":{"c":1,"d":2,"c":3}}]})"), HasSubstr("'c' occurs twice"));
  EXPECT_EQ(error_of(R"({"x":{"a":1},"y":{"a":2}})"), "no error");
  JsonLimits limits;
  limits.reject_duplicate_keys = false;
  EXPECT_EQ(error_of(R"({"a":1,"a":2})", limits), "no error");
}

TEST(ParseJson, CapsDepthValuesAndBytes) {
  const std::string deep = std::string(64, '[') + std::string(64, ']');
  EXPECT_EQ(error_of(deep), "no error");
  EXPECT_THAT(error_of("[" + deep + "]"), HasSubstr("deeper than 64"));
  EXPECT_THAT(error_of(std::string(1'000'000, '[')), HasSubstr("deeper than 64"));
  JsonLimits limits;
  limits.max_values = 4;
  EXPECT_EQ(error_of("[1,2,3]", limits), "no error");
  EXPECT_THAT(error_of("[1,2,3,4]", limits), HasSubstr("more than 4 values"));
  limits.max_bytes = 5;
  EXPECT_THAT(error_of("[1,2,3]", limits), HasSubstr("at most 5 bytes"));
}

class JsonObjectTest : public ::testing::Test {
 protected:
  Json json_ = Json::parse(R"({"n":5,"neg":-1,"f":2.5,"huge":1e30,"whole":8.0,"s":"x","b":true,"nil":null,"list":[1,2],
    "words":["a","b"],"mixed":[1,"a"],"big":18446744073709551615,"o":{"k":"v"}})");
  JsonObject object_{json_, "f.json"};
};

TEST_F(JsonObjectTest, ReadsWhatIsThere) {
  EXPECT_EQ(object_.get_int("n", 1, 5).value(), 5);
  EXPECT_EQ(object_.get_double("n", 0, 10).value(), 5.0);
  EXPECT_EQ(object_.get_double("f", 0, 10).value(), 2.5);
  EXPECT_EQ(object_.get_bool("b").value(), true);
  EXPECT_EQ(object_.get_string("s").value(), "x");
  EXPECT_EQ(object_.find_int_list("list", 0, 9).value().value(), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(object_.find_int_or_list("list", 0, 9).value(), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(object_.find_int_or_list("n", 0, 9).value(), (std::vector<int64_t>{5}));
  EXPECT_EQ(object_.find_string_list("words").value().value(), (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(object_.find_object("o").value()->get_string("k").value(), "v");
}

TEST_F(JsonObjectTest, NullIsAbsent) {
  for (const char* key : {"nil", "none"}) {
    EXPECT_FALSE(object_.has(key));
    EXPECT_EQ(object_.find_int(key, 0, 9).value(), std::nullopt);
    EXPECT_EQ(object_.find_string(key).value(), std::nullopt);
    EXPECT_TRUE(object_.find_int_or_list(key, 0, 9).value().empty());
    EXPECT_THAT(object_.get_int(key, 0, 9).error().message, HasSubstr("is missing: expected an integer from 0 to 9"));
  }
}

TEST_F(JsonObjectTest, ErrorsNameFileKeyLegalAndFound) {
  EXPECT_EQ(object_.get_int("n", 1, 4).error().message, "f.json: 'n': expected an integer from 1 to 4, found 5");
  EXPECT_EQ(object_.get_int("neg", 0, 4).error().message, "f.json: 'neg': expected an integer from 0 to 4, found -1");
  EXPECT_THAT(object_.get_int("whole", 0, 9).error().message, HasSubstr("found 8.0"));
  EXPECT_THAT(object_.get_int("big", 0, std::numeric_limits<int64_t>::max()).error().message,
              HasSubstr("18446744073709551615"));
  EXPECT_THAT(object_.get_int("b", 0, 9).error().message, HasSubstr("found true"));
  EXPECT_THAT(object_.get_double("huge", 0, 1e6).error().message, HasSubstr("found 1e+30"));
  EXPECT_THAT(object_.get_double("s", 0, 1).error().message, HasSubstr("found \"x\""));
  EXPECT_THAT(object_.get_bool("n").error().message, HasSubstr("true or false"));
  EXPECT_THAT(object_.find_string_list("mixed").error().message, HasSubstr("a list of strings"));
  EXPECT_THAT(object_.find_int_list("mixed", 0, 9).error().message, HasSubstr("'mixed'"));
  EXPECT_THAT(object_.find_object("o").value()->get_int("k", 0, 1).error().message, HasSubstr("f.json: 'o.k'"));
}

TEST(JsonFile, NamesAMissingFile) {
  const auto json = parse_json_file("/nonexistent/config.json");
  ASSERT_FALSE(json);
  EXPECT_EQ(json.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(json.error().message, HasSubstr("/nonexistent/config.json"));
}

TEST(JsonFile, ReadsAFile) {
  const testing::ScratchFolder folder;
  EXPECT_EQ((*parse_json_file(folder.write("a.json", "{\"a\":1}")))["a"], 1);
  EXPECT_FALSE(parse_json_file(folder.write("empty.json", "")));
}

}  // namespace
}  // namespace quadrille::formats
