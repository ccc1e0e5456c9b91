// SPDX-License-Identifier: Apache-2.0
// The parts of eval that need no model: answer extraction, data files, standard errors, tables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cli/eval_answer.h"
#include "cli/eval_dataset.h"
#include "cli/eval_report.h"
#include "cli/progress.h"
#include "cli/text_table.h"
#include "e2e/program.h"
#include "plan/known_shapes.h"

namespace quadrille::cli {
namespace {

using ::testing::HasSubstr;
using testing::TemporaryFolder;
using testing::write_text;

TEST(Answer, NumberBehindTheLastMarkWins) {
  const auto found = extract_number("3 + 4 = 7.\n#### 7\nWait.\n#### $1,234.50 dollars, 9");
  EXPECT_EQ(found.form, AnswerForm::kMarked);
  EXPECT_EQ(found.value, "1234.5");
  EXPECT_EQ(extract_number("#### 12\n#### none").value, "12");
  EXPECT_EQ(extract_number("#### -5").value, "-5");
}

TEST(Answer, LastNumberIsTheFallback) {
  const auto found = extract_number("So 12 apples and then 30,000.");
  EXPECT_EQ(found.form, AnswerForm::kFallback);
  EXPECT_EQ(found.value, "30000");
  EXPECT_EQ(extract_number("it is -4").value, "-4");
  EXPECT_EQ(extract_number("9-4").value, "4");
  EXPECT_EQ(extract_number("x = (2)-$3").value, "3");
  EXPECT_EQ(extract_number("no number").form, AnswerForm::kNone);
  EXPECT_EQ(extract_number("").form, AnswerForm::kNone);
  EXPECT_EQ(extract_number("####").form, AnswerForm::kNone);
}

TEST(Answer, NumbersAreNormalised) {
  EXPECT_EQ(normalised_number("$1,234.50"), "1234.5");
  EXPECT_EQ(normalised_number("+007"), "7");
  EXPECT_EQ(normalised_number("-0.00"), "0");
  EXPECT_EQ(normalised_number(".5"), "0.5");
  EXPECT_EQ(normalised_number("12a"), "");
  EXPECT_EQ(normalised_number(""), "");
  EXPECT_EQ(normalised_number("-"), "");
}

TEST(Answer, LetterByMarkThenByFallback) {
  EXPECT_EQ(extract_letter("Hence the answer is (C). Or the answer is (D).", 10).value, "C");
  EXPECT_EQ(extract_letter("The answer is **(J)**", 10).value, "J");
  EXPECT_EQ(extract_letter("the answer is A lot of text, the answer is B.", 10).value, "A");
  EXPECT_EQ(extract_letter("the answer is Apples; the answer is B", 10).value, "B");
  const auto colon = extract_letter("Answer: B, no. Answer: D", 10);
  EXPECT_EQ(colon.form, AnswerForm::kFallback);
  EXPECT_EQ(colon.value, "D");
  EXPECT_EQ(extract_letter("B or maybe C. I said", 3).value, "C");
  EXPECT_EQ(extract_letter("Zebra CAB", 10).form, AnswerForm::kNone);
  EXPECT_EQ(extract_letter("the answer is (E)", 4).form, AnswerForm::kNone) << "only four options";
}

TEST(Dataset, ReadsGsm8k) {
  TemporaryFolder folder;
  const std::string path = folder / "a.jsonl";
  write_text(path,
             "{\"question\": \"Q1\", \"answer\": \"1 + 1 = <<1+1=2>>2\\n2 + 1 = 3\\n#### 3\"}\n\n"
             "{\"question\": \"Q2\", \"answer\": \"#### 1,000\", \"steps\": 6}\r\n");
  const auto problems = read_gsm8k(path, 0);
  ASSERT_TRUE(problems) << problems.error().message;
  ASSERT_EQ(problems->size(), 2u);
  EXPECT_EQ((*problems)[0].expected, "3");
  EXPECT_EQ((*problems)[0].steps, 2);
  EXPECT_EQ((*problems)[1].expected, "1000");
  EXPECT_EQ((*problems)[1].steps, 6);
  EXPECT_EQ((*problems)[1].id, "3") << "the number of the line";
  EXPECT_EQ(read_gsm8k(path, 1)->size(), 1u);
}

TEST(Dataset, ReadsMmluPro) {
  TemporaryFolder folder;
  const std::string path = folder / "a.jsonl";
  write_text(path,
             R"({"question_id": 70, "question": "Q", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1,)"
             R"( "cot_content": "A: Let's think step by step. Y.", "category": "math", "src": "s"})");
  const auto problems = read_any_problems(path, 0);
  ASSERT_TRUE(problems) << problems.error().message;
  const Problem& problem = problems->front();
  EXPECT_EQ(problem.id, "70");
  EXPECT_EQ(problem.category, "math");
  EXPECT_EQ(problem.expected, "B");
  EXPECT_EQ(question_text(problem), "Question:\nQ\nOptions:\nA. x\nB. y\nC. z\nAnswer: Let's think step by step.");
}

struct BadData {
  const char* text;
  const char* expected;
};

TEST(Dataset, ErrorsNameFileLineAndKey) {
  TemporaryFolder folder;
  const std::string path = folder / "bad.jsonl";
  const BadData gsm8k[] = {
      {"{\"question\": \"Q\"}", "bad.jsonl:1: 'answer'"},
      {"{\"question\": 1, \"answer\": \"#### 1\"}", "'question'"},
      {"{\"question\": \"Q\", \"answer\": \"7\"}", "#### NUMBER"},
      {"\n[1]", "bad.jsonl:2: expected one JSON object a line"},
      {"{", "bad.jsonl:1"},
      {"", "found none"},
  };
  for (const BadData& bad : gsm8k) {
    write_text(path, bad.text);
    const auto problems = read_gsm8k(path, 0);
    ASSERT_FALSE(problems) << bad.text;
    EXPECT_THAT(problems.error().message, HasSubstr(bad.expected));
  }
  const BadData mmlu[] = {
      {R"({"question": "Q", "options": ["x"], "answer": "A"})", "2 to 26"},
      {R"({"question": "Q", "options": ["x", "y"], "answer": "C"})", "a letter of A..B"},
      {R"({"question": "Q", "options": ["x", "y"], "answer": "A", "answer_index": 1})", "'answer_index'"},
  };
  for (const BadData& bad : mmlu) {
    write_text(path, bad.text);
    const auto problems = read_mmlu_pro(path, 0);
    ASSERT_FALSE(problems) << bad.text;
    EXPECT_THAT(problems.error().message, HasSubstr(bad.expected));
  }
  EXPECT_THAT(read_gsm8k(folder / "none.jsonl", 0).error().message, HasSubstr("none.jsonl"));
}

TEST(Dataset, ReadsTexts) {
  TemporaryFolder folder;
  write_text(folder / "a.txt", "one\ntwo\n");
  EXPECT_EQ(read_texts(folder / "a.txt", 0)->front(), "one\ntwo\n");
  write_text(folder / "a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"\"}\n{\"text\": \"two\"}\n");
  EXPECT_EQ(read_texts(folder / "a.jsonl", 0)->size(), 2u);
  write_text(folder / "empty.txt", "");
  EXPECT_FALSE(read_texts(folder / "empty.txt", 0));
}

TEST(Report, StandardErrorIsThatOfAMean) {
  Score score;
  for (int i = 0; i < 10; ++i) score.add(i < 8);
  EXPECT_DOUBLE_EQ(score.accuracy(), 0.8);
  // The sample standard deviation of eight ones and two zeros, over sqrt(10), computed the long way.
  double squares = 0;
  for (int i = 0; i < 10; ++i) squares += std::pow((i < 8 ? 1 : 0) - 0.8, 2);
  EXPECT_NEAR(score.standard_error(), std::sqrt(squares / 9) / std::sqrt(10.0), 1e-15);
  EXPECT_EQ(Score{}.standard_error(), 0);
  EXPECT_EQ(Score{}.accuracy(), 0);
}

TEST(Report, CountsByCategoryAndSteps) {
  AccuracyReport report;
  report.task = "gsm8k";
  report.total_problems = 4;
  report.settings = nlohmann::json::object();
  for (int i = 0; i < 3; ++i) {
    AnswerRecord record;
    record.category = i == 0 ? "math" : "physics";
    record.steps = 2 + i;
    record.correct = i != 1;
    record.form = i == 1 ? "none" : "marked";
    record.finish = i == 1 ? "length" : "stop";
    report.records.push_back(record);
  }
  EXPECT_EQ(report.by_category()["physics"].count, 2);
  EXPECT_EQ(report.by_category()["physics"].correct, 1);
  const auto json = report_json(report);
  EXPECT_EQ(json["by_steps"]["3"]["correct"], 0);
  EXPECT_EQ(json["forms"]["none"], 1);
  EXPECT_EQ(json["cut_off"], 1);
  EXPECT_EQ(json["complete"], false);
  EXPECT_THAT(report_text(report), HasSubstr("Stopped early: 3 of 4"));
  EXPECT_THAT(report_text(report), HasSubstr("66.67 %"));
}

TEST(Report, PerplexityAndItsErrorOverWindows) {
  PerplexityReport report;
  report.windows = {{10, 5}, {14, 7}};
  EXPECT_DOUBLE_EQ(report.mean_nll(), 2);
  EXPECT_DOUBLE_EQ(report.perplexity(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(report.mean_nll_error(), 0) << "both windows have the same mean";
  report.windows = {{5, 5}, {15, 5}};
  // Means 1 and 3 of equal windows: the standard error of their mean is 1.
  EXPECT_NEAR(report.mean_nll_error(), 1, 1e-12);
}

TEST(Text, TablesAreAligned) {
  TextTable table({"name", ">n"});
  table.add_row({"a", "10"});
  table.add_row({"b\xC3\xA4r", "7"});
  EXPECT_EQ(table.text(), "name   n\n----  --\na     10\nb\xC3\xA4r    7\n");
}

TEST(Text, BytesAndSeconds) {
  EXPECT_EQ(bytes_text(17), "17 B");
  EXPECT_EQ(bytes_text(1536), "1.5 KiB");
  EXPECT_EQ(bytes_text(300.0 * 1024 * 1024), "300 MiB");
  EXPECT_EQ(seconds_text(4.25), "4.2 s");
  EXPECT_EQ(seconds_text(185), "3 min 05 s");
}

TEST(Bench, CountsTheOperationsOfAShape) {
  const auto config = plan::bench_shape("qwen3-30b-a3b", 1);
  ASSERT_TRUE(config) << config.error().message;
  // By hand for one token in one layer: q, o 2048 x 4096 each, k, v 2048 x 512 each, router 2048 x 128, 8 experts of
  // 3 x 2048 x 768, one key for 32 heads of 128 (scores and values), head 2048 x 151936.
  const double expected =
      2.0 * (2 * 2048.0 * 4096 + 2 * 2048.0 * 512 + 2048.0 * 128 + 8 * 3 * 2048.0 * 768 + 2 * 4096.0 + 2048.0 * 151936);
  EXPECT_DOUBLE_EQ(plan::prefill_flops(*config, 1), expected);
  EXPECT_DOUBLE_EQ(plan::kv_bytes_read(*config, 100, 2), 100.0 * 2 * 512 * 2);
  for (const std::string& name : plan::bench_shape_names()) EXPECT_TRUE(plan::bench_shape(name, 0)) << name;
  EXPECT_FALSE(plan::bench_shape("nosuch", 0));
  const auto cut = plan::bench_shape("qwen3-30b-a3b", 1, 32768);
  ASSERT_TRUE(cut) << cut.error().message;
  EXPECT_DOUBLE_EQ(expected - plan::prefill_flops(*cut, 1), 2.0 * 2048 * (151936 - 32768));
}

}  // namespace
}  // namespace quadrille::cli
