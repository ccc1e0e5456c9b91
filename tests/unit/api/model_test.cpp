// SPDX-License-Identifier: Apache-2.0
// Folders, plans, tokenizers and loads through the C functions, against the shared library alone: what a program in
// another language gets.
#include <gmock/gmock.h>

#include "unit/api/model_calls.h"

namespace {

using namespace quadrille::testing;
using nlohmann::json;
using ::testing::HasSubstr;

TEST(ModelFolders, AreDescribed) {
  const json described = json_of([](auto* t, auto* e) { return qd_describe_folder(kAbacus.c_str(), t, e); });
  EXPECT_EQ(described["quantization_format"], "pack-quantized");
  EXPECT_GT(described["modules"].size(), 10u);
  EXPECT_EQ(described["tensor_parallel"][0]["legal"], true);
  qd_string text{};
  qd_error error{};
  EXPECT_EQ(qd_describe_folder("/nowhere", &text, &error), QD_NOT_FOUND);
  EXPECT_THAT(error.message, HasSubstr("/nowhere"));
  EXPECT_EQ(text.data, nullptr);
  EXPECT_EQ(qd_describe_folder(nullptr, &text, &error), QD_INVALID_ARGUMENT);
}

TEST(ModelFolders, LegalSizesNeedTheConfigAlone) {
  const json legal = json_of([](auto* t, auto* e) { return qd_legal_tp("qwen3-30b-a3b", 8, t, e); });
  ASSERT_EQ(legal.size(), 8u);
  for (const json& verdict : legal) EXPECT_EQ(verdict["legal"], true) << verdict;
  EXPECT_EQ(legal[2]["even"], false) << "48 query heads of 32 on 3 ranks";
  // The same words as from the headers of the whole folder.
  const json abacus = json_of([](auto* t, auto* e) { return qd_legal_tp(kAbacus.c_str(), 8, t, e); });
  const json described = json_of([](auto* t, auto* e) { return qd_describe_folder(kAbacus.c_str(), t, e); });
  EXPECT_EQ(abacus, described["tensor_parallel"]);
  qd_string text{};
  qd_error error{};
  EXPECT_EQ(qd_legal_tp("nosuch", 8, &text, &error), QD_NOT_FOUND);
  EXPECT_THAT(error.message, HasSubstr("qwen3-30b-a3b"));
  EXPECT_EQ(qd_legal_tp("qwen3-30b-a3b", 65, &text, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("expected 1 to 64, found 65"));
}

TEST(ModelFolders, PlansSayWhatFits) {
  qd_plan_desc desc;
  qd_plan_desc_init(&desc);
  desc.model = "qwen3-235b-a22b";
  desc.gpus = 4;
  const auto ask = [&](auto* t, auto* e) { return qd_plan(&desc, t, e); };
  const json plan = json_of(ask);
  EXPECT_EQ(plan["grids"].size(), 3u);
  EXPECT_EQ(plan["best"]["gpus"], 4);
  desc.gpu_memory_gib = 10;
  EXPECT_TRUE(json_of(ask)["best"].is_null());
  qd_string text{};
  qd_error error{};
  desc.gpu = "a100";
  EXPECT_NE(qd_plan(&desc, &text, &error), QD_OK);
  EXPECT_THAT(error.message, HasSubstr("a100"));
  desc.gpu = "h100";
  desc.group_size = 16;
  EXPECT_EQ(qd_plan(&desc, &text, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("group_size: expected one of -1, 0, 32, 64, 128, found 16"));
  desc.struct_size = 4;
  EXPECT_EQ(qd_plan(&desc, &text, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("struct_size"));
}

TEST(ModelTokenizer, GoesThereAndBackAndOutlivesItsModel) {
  OwnedModel model = load(desc_of(kAbacus));
  const OwnedTokenizer tokenizer = tokenizer_of(model.get());
  model.reset();
  const std::vector<int32_t> ids = encode(tokenizer.get(), kQuestion);
  EXPECT_GT(ids.size(), 5u);
  EXPECT_EQ(decode(tokenizer.get(), ids), kQuestion);
  const json described = json_of([&](auto* t, auto* e) { return qd_tokenizer_describe(tokenizer.get(), t, e); });
  EXPECT_EQ(described["has_chat_template"], true);
  ASSERT_FALSE(described["special_ids"].empty());
  const int32_t special = described["special_ids"][0];
  qd_string token{};
  ASSERT_EQ(qd_tokenizer_token_text(tokenizer.get(), special, &token, nullptr), QD_OK);
  const std::string name = take(&token);
  int32_t id = -2;
  ASSERT_EQ(qd_tokenizer_token_id(tokenizer.get(), name.data(), name.size(), &id, nullptr), QD_OK);
  EXPECT_EQ(id, special);
  ASSERT_EQ(qd_tokenizer_token_id(tokenizer.get(), "no such token", 13, &id, nullptr), QD_OK);
  EXPECT_EQ(id, -1);
  EXPECT_EQ(encode(tokenizer.get(), name), std::vector<int32_t>{special});
  EXPECT_THAT(chat_prompt(tokenizer.get(), kQuestion), HasSubstr(kQuestion));
}

TEST(ModelTokenizer, RefusesWhatIsNoText) {
  qd_tokenizer* made = nullptr;
  qd_error error{};
  EXPECT_EQ(qd_tokenizer_load("/nowhere", &made, &error), QD_NOT_FOUND);
  EXPECT_EQ(made, nullptr);
  ASSERT_EQ(qd_tokenizer_load(kAbacus.c_str(), &made, &error), QD_OK) << error.message;
  const OwnedTokenizer tokenizer(made);
  qd_ids ids{};
  EXPECT_EQ(qd_tokenizer_encode(made, "ab\xff", 3, 0, 1, &ids, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("2"));
  EXPECT_EQ(qd_tokenizer_encode(made, nullptr, 3, 0, 1, &ids, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(qd_tokenizer_encode(made, nullptr, 0, 0, 1, &ids, &error), QD_OK) << "empty";
  EXPECT_EQ(ids.size, 0);
  qd_ids_free(&ids);
  const int32_t bad[] = {1, -1};
  qd_string text{};
  EXPECT_EQ(qd_tokenizer_decode(made, bad, 2, 1, &text, &error), QD_INVALID_ARGUMENT);
  EXPECT_EQ(qd_tokenizer_render_chat(made, "[{", 2, 1, nullptr, 0, &text, &error), QD_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("messages_json: expected JSON, found '[{'"));
  EXPECT_EQ(qd_tokenizer_decode(nullptr, bad, 1, 1, &text, &error), QD_INVALID_ARGUMENT);
  qd_tokenizer_free(nullptr);
}

TEST(ModelLoad, TellsTheCallersThreadHowFarItIs) {
  Watcher watcher;
  const qd_progress progress = watcher.progress();
  const qd_model_desc desc = desc_of(kAbacus);
  qd_model* model = nullptr;
  qd_error error{};
  ASSERT_EQ(qd_model_load(&desc, &progress, &model, &error), QD_OK) << error.message;
  const OwnedModel owned(model);
  EXPECT_GE(watcher.calls, 1);
  EXPECT_EQ(watcher.done, watcher.total);
  EXPECT_GT(watcher.total, 100000u);
  EXPECT_EQ(watcher.thread, std::this_thread::get_id());
  const json described = json_of([&](auto* t, auto* e) { return qd_model_describe(model, t, e); });
  EXPECT_EQ(described["numerics"], "exact");
  EXPECT_EQ(described["cache_positions"], 64 * 2112) << "of 2,048 positions, and a page for what is left over";
  EXPECT_EQ(described["has_tokenizer"], true);
}

TEST(ModelLoad, EndsWhenTheCallerSaysSo) {
  for (const int32_t tp : {1, 2}) {
    Watcher watcher;
    watcher.stop_at = 1;
    const qd_progress progress = watcher.progress();
    const qd_model_desc desc = desc_of(kAbacus, tp);
    qd_model* model = nullptr;
    qd_error error{};
    EXPECT_EQ(qd_model_load(&desc, &progress, &model, &error), QD_CANCELLED) << error.message;
    EXPECT_EQ(model, nullptr);
  }
}

TEST(ModelLoad, RefusesBeforeItReads) {
  const auto expect = [](auto&& change, qd_result code, const std::string& words) {
    qd_model_desc desc = desc_of(kAbacus);
    change(desc);
    qd_model* model = nullptr;
    qd_error error{};
    EXPECT_EQ(qd_model_load(&desc, nullptr, &model, &error), code) << words << ": " << error.message;
    EXPECT_THAT(error.message, HasSubstr(words));
    EXPECT_EQ(model, nullptr);
  };
  expect([](auto& d) { d.struct_size = 0; }, QD_INVALID_ARGUMENT, "qd_model_desc_init");
  expect([](auto& d) { d.folder = nullptr; }, QD_INVALID_ARGUMENT, "folder: a null pointer");
  expect([](auto& d) { d.folder = "/nowhere"; }, QD_NOT_FOUND, "/nowhere");
  expect([](auto& d) { d.device = "tpu"; }, QD_INVALID_ARGUMENT, "expected 'cpu', 'cuda' or 'cuda:N', found 'tpu'");
  expect([](auto& d) { d.device = "cuda:x"; }, QD_INVALID_ARGUMENT, "found 'cuda:x'");
  expect([](auto& d) { d.numerics = 7; }, QD_INVALID_ARGUMENT, "numerics: expected one of 0, 1, found 7");
  expect([](auto& d) { d.tp = 0; }, QD_INVALID_ARGUMENT, "tp: expected 1 to 64 ranks, found 0");
  expect([](auto& d) { d.threads = -1; }, QD_INVALID_ARGUMENT, "threads");
  expect([](auto& d) { d.kernels = "nosuch"; }, QD_INVALID_ARGUMENT, "nosuch");
  expect([](auto& d) { d.gpu_memory = "1GiB"; }, QD_INVALID_ARGUMENT, "gpu_memory '1GiB' is for a model on a GPU");
  expect([](auto& d) { d.tp = 9; }, QD_UNSUPPORTED, "legal are 1..8 ranks");
  if (qd_device_available(0, nullptr) != QD_OK) {
    expect([](auto& d) { d.device = "cuda"; }, QD_UNSUPPORTED, "");
  }
  qd_model_free(nullptr);
  qd_update_free(nullptr);
}

}  // namespace
