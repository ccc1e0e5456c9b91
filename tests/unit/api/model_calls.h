// SPDX-License-Identifier: Apache-2.0
// Calls of c_model.h with owners around them, for the tests of whole models.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "quadrille/c_model.h"

namespace quadrille::testing {

inline const std::string kAbacus = QD_SOURCE_DIR "/models/abacus/w4a8";
inline const std::string kAbacusBf16 = QD_SOURCE_DIR "/models/abacus/bf16";
// Of models/abacus/gsm8k.jsonl, which both models answer rightly.
inline const std::string kQuestion =
    "A tank of Lara holds 6498 tons of gravel and loses 38 tons an hour for 63 hours. How many tons of gravel are "
    "there "
    "in the end?";
inline const std::string kRightAnswer = "#### 4104";

struct FreeModel {
  void operator()(qd_model* model) const { qd_model_free(model); }
};
struct FreeTokenizer {
  void operator()(qd_tokenizer* tokenizer) const { qd_tokenizer_free(tokenizer); }
};
using OwnedModel = std::unique_ptr<qd_model, FreeModel>;
using OwnedTokenizer = std::unique_ptr<qd_tokenizer, FreeTokenizer>;

inline std::string take(qd_string* string) {
  std::string text(string->data, string->size);
  qd_string_free(string);
  EXPECT_EQ(string->data, nullptr);
  return text;
}
inline std::vector<int32_t> take(qd_ids* ids) {
  std::vector<int32_t> list(ids->data, ids->data + ids->size);
  qd_ids_free(ids);
  return list;
}

// What a call with a JSON result gives; an error fails the test.
template <typename Call>
nlohmann::json json_of(Call&& call) {
  qd_string text{};
  qd_error error{};
  EXPECT_EQ(call(&text, &error), QD_OK) << error.message;
  return text.data == nullptr ? nlohmann::json() : nlohmann::json::parse(take(&text));
}

// Counts calls; asks to stop from call `stop_at` on.
struct Watcher {
  int calls = 0, stop_at = std::numeric_limits<int>::max();
  uint64_t done = 0, total = 0;
  std::string what;
  std::thread::id thread;
  qd_progress progress() {
    return {[](void* context, const char* at, uint64_t so_far, uint64_t all) {
              auto* own = static_cast<Watcher*>(context);
              own->calls += 1;
              own->what = at;
              own->done = so_far;
              own->total = all;
              own->thread = std::this_thread::get_id();
              return own->calls >= own->stop_at ? 1 : 0;
            },
            this};
  }
};

inline qd_model_desc desc_of(const std::string& folder, int32_t tp = 1) {
  qd_model_desc desc;
  qd_model_desc_init(&desc);
  desc.folder = folder.c_str();
  desc.tp = tp;
  return desc;
}

inline OwnedModel load(const qd_model_desc& desc) {
  qd_model* model = nullptr;
  qd_error error{};
  EXPECT_EQ(qd_model_load(&desc, nullptr, &model, &error), QD_OK) << error.message;
  return OwnedModel(model);
}

// The one that most tests ask.
inline qd_model* shared_model() {
  static const OwnedModel model = load(desc_of(kAbacus));
  return model.get();
}

inline OwnedTokenizer tokenizer_of(const qd_model* model) {
  qd_tokenizer* tokenizer = nullptr;
  qd_error error{};
  EXPECT_EQ(qd_model_tokenizer(model, &tokenizer, &error), QD_OK) << error.message;
  return OwnedTokenizer(tokenizer);
}

inline std::vector<int32_t> encode(const qd_tokenizer* tokenizer, const std::string& text, int32_t add_special = 0) {
  qd_ids ids{};
  qd_error error{};
  EXPECT_EQ(qd_tokenizer_encode(tokenizer, text.data(), text.size(), add_special, 1, &ids, &error), QD_OK)
      << error.message;
  return take(&ids);
}

inline std::string decode(const qd_tokenizer* tokenizer, const std::vector<int32_t>& ids) {
  qd_string text{};
  qd_error error{};
  EXPECT_EQ(qd_tokenizer_decode(tokenizer, ids.data(), static_cast<int64_t>(ids.size()), 1, &text, &error), QD_OK)
      << error.message;
  return take(&text);
}

inline std::string chat_prompt(const qd_tokenizer* tokenizer, const std::string& question) {
  const std::string messages = nlohmann::json::array({{{"role", "user"}, {"content", question}}}).dump();
  qd_string prompt{};
  qd_error error{};
  EXPECT_EQ(qd_tokenizer_render_chat(tokenizer, messages.data(), messages.size(), 1, nullptr, 0, &prompt, &error),
            QD_OK)
      << error.message;
  return take(&prompt);
}

struct Answer {
  std::string text, error;
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  int32_t finish = QD_FINISH_NONE;
};

inline uint64_t submit(qd_model* model, const qd_request_desc& request) {
  uint64_t id = 0;
  qd_error error{};
  EXPECT_EQ(qd_model_submit(model, &request, &id, &error), QD_OK) << error.message;
  return id;
}

// Polls once; true when the request has ended.
inline bool poll_into(qd_model* model, uint64_t id, Answer* answer) {
  qd_update* update = nullptr;
  qd_error error{};
  EXPECT_EQ(qd_model_poll(model, id, &update, &error), QD_OK) << error.message;
  if (update == nullptr) return true;
  EXPECT_EQ(update->id, id);
  answer->text.append(update->text, update->text_size);
  for (int64_t i = 0; i < update->num_tokens; ++i) {
    answer->ids.push_back(update->tokens[i].id);
    answer->logprobs.push_back(update->tokens[i].logprob);
  }
  answer->finish = update->finish;
  answer->error = update->error.message;
  qd_update_free(update);
  return answer->finish != QD_FINISH_NONE;
}

inline Answer finish(qd_model* model, uint64_t id) {
  Answer answer;
  while (!poll_into(model, id, &answer)) EXPECT_EQ(qd_model_wait(model, &id, 1, 60, nullptr), QD_OK);
  return answer;
}

inline qd_request_desc request_of(const std::vector<int32_t>& prompt) {
  qd_request_desc request;
  qd_request_desc_init(&request);
  request.prompt = prompt.data();
  request.num_prompt = static_cast<int64_t>(prompt.size());
  request.max_tokens = 120;
  return request;
}

inline std::vector<std::vector<int32_t>> some_prompts(const qd_tokenizer* tokenizer) {
  std::vector<std::vector<int32_t>> prompts;
  for (const char* question :
       {kQuestion.c_str(), "What is 12 plus 30?", "Anna reads 5 pages a day for 6 days. How many pages does she read?",
        "Sam had 20 coins and lost 7."}) {
    prompts.push_back(encode(tokenizer, chat_prompt(tokenizer, question)));
  }
  return prompts;
}

}  // namespace quadrille::testing
