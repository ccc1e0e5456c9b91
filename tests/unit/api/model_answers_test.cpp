// SPDX-License-Identifier: Apache-2.0
// Requests, logits and new folders through the C functions, against the shared library alone.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>

#include "support/scratch_folder.h"
#include "unit/api/model_calls.h"

namespace {

using namespace quadrille::testing;
using nlohmann::json;
using ::testing::HasSubstr;

TEST(ModelAnswers, DoNotDependOnTheBatch) {
  qd_model* model = shared_model();
  const OwnedTokenizer tokenizer = tokenizer_of(model);
  const auto prompts = some_prompts(tokenizer.get());
  std::vector<Answer> alone;
  for (const auto& prompt : prompts) alone.push_back(finish(model, submit(model, request_of(prompt))));
  std::vector<uint64_t> ids;
  for (int round = 0; round < 3; ++round) {
    for (const auto& prompt : prompts) ids.push_back(submit(model, request_of(prompt)));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    const Answer together = finish(model, ids[i]);
    const Answer& one = alone[i % prompts.size()];
    EXPECT_EQ(together.ids, one.ids);
    EXPECT_EQ(together.text, one.text);
    EXPECT_EQ(together.finish, one.finish);
    EXPECT_FALSE(one.text.empty());
    EXPECT_EQ(decode(tokenizer.get(), one.ids), one.text);
  }
  EXPECT_THAT(alone[0].text, HasSubstr(kRightAnswer));
  const json metrics = json_of([&](auto* t, auto* e) { return qd_model_metrics(model, t, e); });
  EXPECT_EQ(metrics["running"], 0);
  EXPECT_EQ(metrics["free_pages"], metrics["total_pages"]);
}

TEST(ModelAnswers, LogitsAndLogProbabilitiesAgree) {
  qd_model* model = shared_model();
  const OwnedTokenizer tokenizer = tokenizer_of(model);
  const std::vector<int32_t> prompt = some_prompts(tokenizer.get())[0];
  qd_request_desc request = request_of(prompt);
  request.logprobs = 2;
  request.prompt_logprobs = 1;
  const uint64_t id = submit(model, request);
  // Beside it.
  const json described = json_of([&](auto* t, auto* e) { return qd_model_describe(model, t, e); });
  const size_t vocab = described["vocab_size"];
  std::vector<float> logits(prompt.size() * vocab);
  Watcher watcher;
  const qd_progress progress = watcher.progress();
  qd_error error{};
  ASSERT_EQ(qd_model_logits(model, prompt.data(), static_cast<int64_t>(prompt.size()), logits.data(), logits.size(),
                            &progress, &error),
            QD_OK)
      << error.message;
  EXPECT_GE(watcher.calls, 1);
  EXPECT_EQ(watcher.total, prompt.size());
  const Answer answer = finish(model, id);
  ASSERT_FALSE(answer.ids.empty());
  const float* last = logits.data() + (prompt.size() - 1) * vocab;
  EXPECT_EQ(std::max_element(last, last + vocab) - last, answer.ids[0]);
  double sum = 0;
  const double most = *std::max_element(last, last + vocab);
  for (size_t v = 0; v < vocab; ++v) sum += std::exp(last[v] - most);
  EXPECT_FLOAT_EQ(answer.logprobs[0], static_cast<float>(last[answer.ids[0]] - most - std::log(sum)));
  // Row by row the same bits as a shorter prompt has at its end.
  std::vector<float> shorter(5 * vocab);
  ASSERT_EQ(qd_model_logits(model, prompt.data(), 5, shorter.data(), shorter.size(), nullptr, &error), QD_OK);
  EXPECT_TRUE(std::equal(shorter.begin(), shorter.end(), logits.begin()));
  EXPECT_EQ(qd_model_logits(model, prompt.data(), 5, shorter.data(), shorter.size() - 1, nullptr, &error),
            QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("need room for " + std::to_string(shorter.size())));
}

TEST(ModelAnswers, TextPromptsStopStringsAndSeeds) {
  qd_model* model = shared_model();
  const OwnedTokenizer tokenizer = tokenizer_of(model);
  const std::string prompt = chat_prompt(tokenizer.get(), kQuestion);
  qd_request_desc request;
  qd_request_desc_init(&request);
  request.text = prompt.data();
  request.text_size = prompt.size();
  const Answer whole = finish(model, submit(model, request));
  EXPECT_EQ(whole.finish, QD_FINISH_STOP) << whole.text;
  const char* stops[] = {"remain"};
  request.stop = stops;
  request.num_stop = 1;
  const Answer cut = finish(model, submit(model, request));
  ASSERT_THAT(whole.text, HasSubstr("remain"));
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find("remain")));
  request.num_stop = 0;
  request.temperature = 1.5F;
  request.seed = 7;
  const Answer drawn = finish(model, submit(model, request));
  EXPECT_EQ(finish(model, submit(model, request)).ids, drawn.ids);
  request.top_p = 0;
  uint64_t id = 0;
  qd_error error{};
  EXPECT_EQ(qd_model_submit(model, &request, &id, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("top_p"));
  request.text = nullptr;
  EXPECT_EQ(qd_model_submit(model, &request, &id, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("found neither"));
}

TEST(ModelAnswers, EndWhenCancelled) {
  qd_model* model = shared_model();
  const OwnedTokenizer tokenizer = tokenizer_of(model);
  const std::vector<int32_t> prompt = some_prompts(tokenizer.get())[0];
  qd_request_desc request = request_of(prompt);
  request.ignore_stop_ids = 1;
  request.max_tokens = 700;
  const uint64_t id = submit(model, request);
  Answer answer;
  while (answer.ids.size() < 3 && !poll_into(model, id, &answer)) qd_model_wait(model, &id, 1, 60, nullptr);
  ASSERT_EQ(qd_model_cancel(model, id, nullptr), QD_OK);
  while (answer.finish == QD_FINISH_NONE) {
    qd_model_wait(model, &id, 1, 60, nullptr);
    poll_into(model, id, &answer);
  }
  EXPECT_EQ(answer.finish, QD_FINISH_CANCELLED);
  EXPECT_LT(answer.ids.size(), 700u);
  qd_update* update = nullptr;
  qd_error error{};
  EXPECT_EQ(qd_model_poll(model, id, &update, &error), QD_NOT_FOUND);
  EXPECT_EQ(update, nullptr);
  EXPECT_EQ(qd_model_cancel(model, 123456, nullptr), QD_OK);
  // Logits that nobody wants any more.
  Watcher watcher;
  watcher.stop_at = 1;
  const qd_progress progress = watcher.progress();
  const std::vector<int32_t> many(4000, prompt[0]);
  const json described = json_of([&](auto* t, auto* e) { return qd_model_describe(model, t, e); });
  const auto length = std::min<int64_t>(described["max_positions"].get<int64_t>(), 4000);
  std::vector<float> logits(static_cast<size_t>(length) * described["vocab_size"].get<size_t>());
  EXPECT_EQ(qd_model_logits(model, many.data(), length, logits.data(), logits.size(), &progress, &error), QD_CANCELLED);
  EXPECT_THAT(error.message, HasSubstr("cancelled after"));
}

TEST(ModelAnswers, ManyThreadsAskTwoModels) {
  const OwnedModel second = load(desc_of(kAbacus));
  qd_model* models[] = {shared_model(), second.get()};
  const OwnedTokenizer tokenizer = tokenizer_of(models[0]);
  const auto prompts = some_prompts(tokenizer.get());
  std::vector<Answer> expected;
  for (const auto& prompt : prompts) expected.push_back(finish(models[0], submit(models[0], request_of(prompt))));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < prompts.size(); ++i) {
        const size_t p = (i + t) % prompts.size();
        const Answer answer = finish(models[t % 2], submit(models[t % 2], request_of(prompts[p])));
        wrong += answer.ids == expected[p].ids ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ModelAnswers, AreThoseOfOneRankWithTwo) {
  const OwnedModel pair = load(desc_of(kAbacus, 2));
  qd_model* one = shared_model();
  const OwnedTokenizer tokenizer = tokenizer_of(one);
  for (const auto& prompt : some_prompts(tokenizer.get())) {
    const Answer expected = finish(one, submit(one, request_of(prompt)));
    EXPECT_EQ(finish(pair.get(), submit(pair.get(), request_of(prompt))).text, expected.text);
  }
  const json described = json_of([&](auto* t, auto* e) { return qd_model_describe(pair.get(), t, e); });
  EXPECT_EQ(described["tp"], 2);
}

TEST(ModelFree, EndsWhatRuns) {
  for (const int32_t tp : {1, 2}) {
    OwnedModel model = load(desc_of(kAbacus, tp));
    const std::vector<int32_t> prompt(64, 5);
    qd_request_desc request = request_of(prompt);
    request.ignore_stop_ids = 1;
    request.max_tokens = 900;
    for (int i = 0; i < 4; ++i) submit(model.get(), request);
    model.reset();
  }
}

class ModelMaking : public ::testing::Test {
 protected:
  // A prepared folder of the abacus.
  std::string prepare(const std::string& name, const qd_progress* progress = nullptr, json* report = nullptr) {
    const std::string out = scratch_.file(name);
    qd_prepare_desc desc;
    qd_prepare_desc_init(&desc);
    desc.in = kAbacus.c_str();
    desc.out = out.c_str();
    const json made = json_of([&](auto* t, auto* e) { return qd_prepare_folder(&desc, progress, t, e); });
    if (report != nullptr) *report = made;
    return out;
  }
  const ScratchFolder scratch_;
};

TEST_F(ModelMaking, PreparedFoldersAnswerAlike) {
  Watcher watcher;
  const qd_progress progress = watcher.progress();
  json report;
  const std::string out = prepare("prepared", &progress, &report);
  EXPECT_EQ(report["numerics"], "exact");
  EXPECT_EQ(watcher.done, watcher.total);
  const OwnedModel model = load(desc_of(out));
  const OwnedTokenizer tokenizer = tokenizer_of(model.get());
  const std::vector<int32_t> prompt = some_prompts(tokenizer.get())[1];
  const Answer expected = finish(shared_model(), submit(shared_model(), request_of(prompt)));
  EXPECT_EQ(finish(model.get(), submit(model.get(), request_of(prompt))).ids, expected.ids);
  qd_prepare_desc desc;
  qd_prepare_desc_init(&desc);
  desc.in = kAbacus.c_str();
  desc.out = out.c_str();
  qd_error error{};
  EXPECT_EQ(qd_prepare_folder(&desc, nullptr, nullptr, &error), QD_INVALID_ARGUMENT) << "it is there already";
  EXPECT_THAT(error.message, HasSubstr(out));
}

// A step that fails ends its requests with the words of the model, and the model goes on.
TEST_F(ModelMaking, DamageEndsTheRequestsThatMeetIt) {
  const std::string out = prepare("damaged");
  std::string bytes = read_bytes(out + "/weights.quadrille");
  // In the midst of the experts of layer 0, which are checked at their first use.
  for (size_t at = bytes.size() * 42 / 100; at < bytes.size() * 48 / 100; at += 4096) {
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
  }
  scratch_.write("damaged/weights.quadrille", bytes);
  const OwnedModel model = load(desc_of(out));
  const std::vector<int32_t> prompt = some_prompts(tokenizer_of(model.get()).get())[0];
  for (int round = 0; round < 2; ++round) {
    const Answer answer = finish(model.get(), submit(model.get(), request_of(prompt)));
    EXPECT_EQ(answer.finish, QD_FINISH_ERROR);
    EXPECT_THAT(answer.error, HasSubstr("expected the checksum"));
  }
  const json metrics = json_of([&](auto* t, auto* e) { return qd_model_metrics(model.get(), t, e); });
  EXPECT_EQ(metrics["free_pages"], metrics["total_pages"]);
}

TEST_F(ModelMaking, QuantisedFoldersRun) {
  const std::string out = scratch_.file("w4a8");
  qd_quantize_desc desc;
  qd_quantize_desc_init(&desc);
  desc.in = kAbacusBf16.c_str();
  desc.out = out.c_str();
  desc.group_size = 32;
  const char* ignore[] = {"re:.*self_attn.*"};
  desc.ignore = ignore;
  desc.num_ignore = 1;
  const json report = json_of([&](auto* t, auto* e) { return qd_quantize_folder(&desc, nullptr, t, e); });
  EXPECT_EQ(report["group_size"], "32");
  EXPECT_GT(report["tensors"].size(), 10u);
  for (const json& tensor : report["tensors"]) EXPECT_THAT(tensor["name"], ::testing::Not(HasSubstr("self_attn")));
  const OwnedModel model = load(desc_of(out));
  const OwnedTokenizer tokenizer = tokenizer_of(model.get());
  const auto prompt = some_prompts(tokenizer.get())[0];
  EXPECT_THAT(finish(model.get(), submit(model.get(), request_of(prompt))).text, HasSubstr(kRightAnswer));
  qd_error error{};
  const std::string unwanted = scratch_.file("unwanted");
  desc.out = unwanted.c_str();
  Watcher watcher;
  watcher.stop_at = 1;
  const qd_progress progress = watcher.progress();
  EXPECT_EQ(qd_quantize_folder(&desc, &progress, nullptr, &error), QD_CANCELLED) << error.message;
  EXPECT_FALSE(std::filesystem::exists(unwanted));
  desc.group_size = 48;
  EXPECT_EQ(qd_quantize_folder(&desc, nullptr, nullptr, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("group_size"));
}

}  // namespace
