// SPDX-License-Identifier: Apache-2.0
// A model that answers requests, as C functions over session/.
#include <algorithm>
#include <vector>

#include "api/call.h"
#include "api/strings.h"
#include "api/tokenizer_handle.h"
#include "api/watch.h"
#include "session/session.h"

using quadrille::ErrorCode;
using quadrille::make_error;
using quadrille::Result;
using quadrille::Status;
using quadrille::api::check_choice;
using quadrille::api::check_given;
using quadrille::api::check_struct;
using quadrille::api::give;
using quadrille::api::guarded;
using quadrille::api::watch_of;
namespace engine = quadrille::engine;
namespace kernels = quadrille::kernels;
namespace session = quadrille::session;

struct qd_model {
  std::unique_ptr<session::Session> session;
};

namespace {

constexpr int64_t kDefaultAnswerTokens = 512;

// An update and what its pointers show.
struct OwnedUpdate : qd_update {
  engine::Update kept;
  std::vector<qd_token> token_list, prompt_list;
  std::vector<qd_logprob> best;
};

std::string text_or_empty(const char* text) {
  return text == nullptr ? "" : text;
}

Result<session::SessionOptions> options_of(const qd_model_desc& desc) {
  QD_TRY_STATUS(check_given(desc.folder, "folder"));
  QD_TRY_STATUS(check_given(desc.device, "device"));
  QD_TRY_STATUS(check_choice("rounding", desc.rounding, {QD_ROUND_BF16, QD_ROUND_F32}));
  session::SessionOptions options;
  options.folder = desc.folder;
  options.device = desc.device;
  options.kernels = text_or_empty(desc.kernels);
  options.gpu_memory = text_or_empty(desc.gpu_memory);
  QD_TRY(options.numerics, quadrille::api::numerics_of(desc.numerics));
  options.rounding = desc.rounding == QD_ROUND_F32 ? kernels::Rounding::kF32 : kernels::Rounding::kBf16;
  QD_TRY(options.threads, quadrille::api::threads_of(desc.threads));
  options.tp = desc.tp;
  options.run_weight_only_as_fp8 = desc.run_weight_only_as_fp8 != 0;
  options.round_scales = desc.round_scales != 0;
  options.cache_tokens = desc.cache_tokens;
  options.engine.prefix_cache = desc.prefix_cache != 0;
  options.engine.max_sequences = desc.max_sequences;
  options.engine.max_batch_tokens = options.engine.prefill_chunk = desc.max_batch_tokens;
  return options;
}

Result<std::vector<int32_t>> prompt_of(const session::Session& own, const qd_request_desc& desc) {
  if (desc.prompt != nullptr) {
    if (desc.num_prompt >= 0) return std::vector<int32_t>(desc.prompt, desc.prompt + desc.num_prompt);
    return make_error(ErrorCode::kInvalidArgument, "num_prompt: expected 0 or more, found {}", desc.num_prompt);
  }
  if (desc.text == nullptr) {
    return make_error(ErrorCode::kInvalidArgument, "expected token ids in 'prompt' or a text in 'text', found neither");
  }
  if (own.text() == nullptr) {
    return make_error(ErrorCode::kUnsupported, "'{}' has no tokenizer: give token ids in 'prompt', not 'text'",
                      own.options().folder);
  }
  return own.text()->encode({desc.text, desc.text_size}, true);
}

Result<engine::Request> request_of(const session::Session& own, const qd_request_desc& desc) {
  engine::Request request;
  QD_TRY(request.prompt, prompt_of(own, desc));
  const int64_t room = own.max_positions() - static_cast<int64_t>(request.prompt.size());
  request.max_tokens =
      desc.max_tokens == -1 ? std::min(kDefaultAnswerTokens, std::max<int64_t>(room, 1)) : desc.max_tokens;
  request.sampling = {desc.temperature, desc.top_k, desc.top_p, desc.min_p, desc.repetition_penalty, desc.seed};
  request.stop_ids = own.stop_ids();
  request.ignore_stop_ids = desc.ignore_stop_ids != 0;
  request.logprobs = desc.logprobs;
  request.prompt_logprobs = desc.prompt_logprobs;
  if (desc.num_stop_ids > 0) {
    QD_TRY_STATUS(check_given(desc.stop_ids, "stop_ids"));
    request.stop_ids.insert(request.stop_ids.end(), desc.stop_ids, desc.stop_ids + desc.num_stop_ids);
  }
  if (desc.num_stop > 0) QD_TRY_STATUS(check_given(desc.stop, "stop"));
  for (size_t i = 0; i < desc.num_stop; ++i) {
    QD_TRY_STATUS(check_given(desc.stop[i], "stop"));
    request.stop_strings.emplace_back(desc.stop[i]);
  }
  return request;
}

int32_t finish_of(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return QD_FINISH_NONE;
    case engine::FinishReason::kStop:
      return QD_FINISH_STOP;
    case engine::FinishReason::kLength:
      return QD_FINISH_LENGTH;
    case engine::FinishReason::kCancelled:
      return QD_FINISH_CANCELLED;
    case engine::FinishReason::kError:
      return QD_FINISH_ERROR;
  }
  return QD_FINISH_ERROR;
}

// Appends to `best` and points there; `best` has room already, so that nothing moves.
void show_tokens(const std::vector<engine::TokenOutput>& from, std::vector<qd_logprob>* best,
                 std::vector<qd_token>* to) {
  for (const engine::TokenOutput& token : from) {
    const qd_logprob* top = best->data() + best->size();
    for (const engine::TokenLogprob& entry : token.top) best->push_back({entry.id, entry.logprob});
    to->push_back({token.id, token.logprob, top, static_cast<int64_t>(token.top.size())});
  }
}

std::unique_ptr<OwnedUpdate> show(engine::Update update) {
  auto shown = std::make_unique<OwnedUpdate>();
  shown->kept = std::move(update);
  const engine::Update& kept = shown->kept;
  size_t entries = 0;
  for (const auto* list : {&kept.tokens, &kept.prompt_tokens}) {
    for (const engine::TokenOutput& token : *list) entries += token.top.size();
  }
  shown->best.reserve(entries);
  show_tokens(kept.tokens, &shown->best, &shown->token_list);
  show_tokens(kept.prompt_tokens, &shown->best, &shown->prompt_list);
  shown->id = kept.id;
  shown->finish = finish_of(kept.finish);
  shown->text = kept.text.c_str();
  shown->text_size = kept.text.size();
  shown->tokens = shown->token_list.data();
  shown->num_tokens = static_cast<int64_t>(shown->token_list.size());
  shown->prompt_tokens = shown->prompt_list.data();
  shown->num_prompt_tokens = static_cast<int64_t>(shown->prompt_list.size());
  shown->cached_prompt_tokens = kept.cached_prompt_tokens;
  if (kept.error) {
    (void)quadrille::api::report(&shown->error, quadrille::api::status_of(kept.error->code), kept.error->message);
  }
  return shown;
}

nlohmann::json metrics_json(const engine::EngineMetrics& metrics) {
  return {{"steps", metrics.steps},
          {"prefill_tokens", metrics.prefill_tokens},
          {"decode_tokens", metrics.decode_tokens},
          {"preemptions", metrics.preemptions},
          {"prefix_hits_tokens", metrics.prefix_hits_tokens},
          {"running", metrics.running},
          {"waiting", metrics.waiting},
          {"free_pages", metrics.free_pages},
          {"total_pages", metrics.total_pages},
          {"step_seconds", metrics.step_seconds},
          {"prefill_seconds", metrics.prefill_seconds},
          {"decode_seconds", metrics.decode_seconds}};
}

}  // namespace

extern "C" {

qd_result qd_model_load(const qd_model_desc* desc, const qd_progress* progress, qd_model** model, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(model, "model"));
    *model = nullptr;
    QD_TRY_STATUS(check_struct(desc, "qd_model_desc"));
    QD_TRY(const session::SessionOptions options, options_of(*desc));
    QD_TRY(auto loaded, session::Session::load(options, watch_of(progress)));
    *model = new qd_model{std::move(loaded)};
    return {};
  });
}

void qd_model_free(qd_model* model) {
  delete model;
}

qd_result qd_model_describe(const qd_model* model, qd_string* json, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(json, "json"));
    *json = {};
    QD_TRY_STATUS(check_given(model, "model"));
    give(quadrille::api::json_text(model->session->description()), json);
    return {};
  });
}

qd_result qd_model_metrics(const qd_model* model, qd_string* json, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(json, "json"));
    *json = {};
    QD_TRY_STATUS(check_given(model, "model"));
    give(quadrille::api::json_text(metrics_json(model->session->metrics())), json);
    return {};
  });
}

qd_result qd_model_tokenizer(const qd_model* model, qd_tokenizer** tokenizer, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(tokenizer, "tokenizer"));
    *tokenizer = nullptr;
    QD_TRY_STATUS(check_given(model, "model"));
    const session::TextModel* text = model->session->text();
    if (text == nullptr) {
      return make_error(ErrorCode::kNotFound, "'{}' has no tokenizer.json", model->session->options().folder);
    }
    *tokenizer = new qd_tokenizer{text->tokenizer()};
    return {};
  });
}

qd_result qd_model_submit(qd_model* model, const qd_request_desc* desc, uint64_t* id, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(id, "id"));
    *id = 0;
    QD_TRY_STATUS(check_given(model, "model"));
    QD_TRY_STATUS(check_struct(desc, "qd_request_desc"));
    QD_TRY(engine::Request request, request_of(*model->session, *desc));
    QD_TRY(*id, model->session->submit(std::move(request)));
    return {};
  });
}

qd_result qd_model_poll(qd_model* model, uint64_t id, qd_update** update, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(update, "update"));
    *update = nullptr;
    QD_TRY_STATUS(check_given(model, "model"));
    QD_TRY(engine::Update polled, model->session->poll(id));
    *update = show(std::move(polled)).release();
    return {};
  });
}

void qd_update_free(qd_update* update) {
  delete static_cast<OwnedUpdate*>(update);
}

qd_result qd_model_wait(qd_model* model, const uint64_t* ids, size_t num_ids, double seconds, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(model, "model"));
    if (num_ids > 0) QD_TRY_STATUS(check_given(ids, "ids"));
    model->session->wait({ids, num_ids}, seconds);
    return {};
  });
}

qd_result qd_model_cancel(qd_model* model, uint64_t id, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(model, "model"));
    model->session->cancel(id);
    return {};
  });
}

qd_result qd_model_logits(qd_model* model, const int32_t* ids, int64_t num_ids, float* logits, size_t capacity,
                          const qd_progress* progress, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(model, "model"));
    if (num_ids < 1) {
      return make_error(ErrorCode::kInvalidArgument, "num_ids: expected at least one token id, found {}", num_ids);
    }
    QD_TRY_STATUS(check_given(ids, "ids"));
    QD_TRY_STATUS(check_given(logits, "logits"));
    return model->session->logits({ids, ids + num_ids}, {logits, capacity}, watch_of(progress));
  });
}

}  // extern "C"
