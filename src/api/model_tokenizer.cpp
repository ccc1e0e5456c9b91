// SPDX-License-Identifier: Apache-2.0
// Tokenizers as C functions.
#include "api/call.h"
#include "api/strings.h"
#include "api/tokenizer_handle.h"
#include "api/watch.h"

using quadrille::ErrorCode;
using quadrille::make_error;
using quadrille::Result;
using quadrille::Status;
using quadrille::api::check_given;
using quadrille::api::give;
using quadrille::api::guarded;
using quadrille::api::text_of;

namespace {

// A handle, a place for what comes of it, and bytes that are there where their size says so.
template <typename Out>
Status check_call(const qd_tokenizer* tokenizer, Out* out, const char* name) {
  QD_TRY_STATUS(check_given(out, name));
  *out = {};
  return check_given(tokenizer, "tokenizer");
}

Status check_bytes(const void* data, size_t size, const char* name) {
  return size == 0 ? Status() : check_given(data, name);
}

nlohmann::json id_json(const std::optional<int32_t>& id) {
  return id ? nlohmann::json(*id) : nlohmann::json(nullptr);
}

Result<nlohmann::ordered_json> parse(std::string_view text, const char* name) {
  auto json = nlohmann::ordered_json::parse(text, nullptr, false);
  if (!json.is_discarded()) return json;
  return make_error(ErrorCode::kInvalidArgument, "{}: expected JSON, found '{}{}'", name, text.substr(0, 60),
                    text.size() > 60 ? "..." : "");
}

}  // namespace

extern "C" {

qd_result qd_tokenizer_load(const char* folder, qd_tokenizer** tokenizer, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_given(tokenizer, "tokenizer"));
    *tokenizer = nullptr;
    QD_TRY_STATUS(check_given(folder, "folder"));
    QD_TRY(auto loaded, quadrille::tokenizer::Tokenizer::load(folder));
    *tokenizer = new qd_tokenizer{std::move(loaded)};
    return {};
  });
}

void qd_tokenizer_free(qd_tokenizer* tokenizer) {
  delete tokenizer;
}

qd_result qd_tokenizer_describe(const qd_tokenizer* tokenizer, qd_string* json, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_call(tokenizer, json, "json"));
    const auto& own = tokenizer->tokenizer;
    nlohmann::json special = nlohmann::json::array();
    for (int32_t id = 0; id < own.vocab_size(); ++id) {
      if (own.is_special(id)) special.push_back(id);
    }
    give(quadrille::api::json_text({{"vocab_size", own.vocab_size()},
                                    {"bos_id", id_json(own.bos_id())},
                                    {"eos_id", id_json(own.eos_id())},
                                    {"special_ids", std::move(special)},
                                    {"has_chat_template", own.has_chat_template()}}),
         json);
    return {};
  });
}

qd_result qd_tokenizer_encode(const qd_tokenizer* tokenizer, const char* text, size_t text_size, int32_t add_special,
                              int32_t parse_special, qd_ids* ids, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_call(tokenizer, ids, "ids"));
    QD_TRY_STATUS(check_bytes(text, text_size, "text"));
    QD_TRY(const std::vector<int32_t> encoded,
           tokenizer->tokenizer.encode(text_of(text, text_size), add_special != 0, parse_special != 0));
    give(encoded, ids);
    return {};
  });
}

qd_result qd_tokenizer_decode(const qd_tokenizer* tokenizer, const int32_t* ids, int64_t num_ids, int32_t skip_special,
                              qd_string* text, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_call(tokenizer, text, "text"));
    if (num_ids < 0) {
      return make_error(ErrorCode::kInvalidArgument, "num_ids: expected 0 or more, found {}", num_ids);
    }
    QD_TRY_STATUS(check_bytes(ids, static_cast<size_t>(num_ids), "ids"));
    QD_TRY(const std::string decoded,
           tokenizer->tokenizer.decode({ids, static_cast<size_t>(num_ids)}, skip_special != 0));
    give(decoded, text);
    return {};
  });
}

qd_result qd_tokenizer_token_id(const qd_tokenizer* tokenizer, const char* token, size_t token_size, int32_t* id,
                                qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_call(tokenizer, id, "id"));
    QD_TRY_STATUS(check_bytes(token, token_size, "token"));
    *id = tokenizer->tokenizer.token_id(text_of(token, token_size)).value_or(-1);
    return {};
  });
}

qd_result qd_tokenizer_token_text(const qd_tokenizer* tokenizer, int32_t id, qd_string* text, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_call(tokenizer, text, "text"));
    give(tokenizer->tokenizer.token_text(id), text);
    return {};
  });
}

qd_result qd_tokenizer_render_chat(const qd_tokenizer* tokenizer, const char* messages_json, size_t messages_size,
                                   int32_t add_generation_prompt, const char* variables_json, size_t variables_size,
                                   qd_string* prompt, qd_error* error) {
  return guarded(error, [&]() -> Status {
    QD_TRY_STATUS(check_call(tokenizer, prompt, "prompt"));
    QD_TRY_STATUS(check_given(messages_json, "messages_json"));
    QD_TRY_STATUS(check_bytes(variables_json, variables_size, "variables_json"));
    QD_TRY(const nlohmann::ordered_json messages, parse(text_of(messages_json, messages_size), "messages_json"));
    nlohmann::ordered_json variables;
    if (variables_size > 0) {
      QD_TRY(variables, parse(text_of(variables_json, variables_size), "variables_json"));
    }
    QD_TRY(const std::string rendered,
           tokenizer->tokenizer.apply_chat_template(messages, add_generation_prompt != 0, variables));
    give(rendered, prompt);
    return {};
  });
}

}  // extern "C"
