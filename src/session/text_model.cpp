// SPDX-License-Identifier: Apache-2.0
// Joins the tokenizer to the engine: its streams, its stop ids.
#include "session/text_model.h"

#include <algorithm>

namespace quadrille::session {
namespace {

class DecoderStream final : public engine::TextStream {
 public:
  explicit DecoderStream(const tokenizer::Tokenizer& tokenizer) : decoder_(tokenizer, true) {}
  std::string push(int32_t id) override { return decoder_.push(id); }
  std::string finish() override { return decoder_.finish(); }

 private:
  tokenizer::StreamDecoder decoder_;
};

}  // namespace

Result<TextModel> TextModel::load(const std::string& folder) {
  QD_TRY(tokenizer::Tokenizer tokenizer, tokenizer::Tokenizer::load(folder));
  return TextModel(std::move(tokenizer));
}

Result<std::vector<int32_t>> TextModel::encode(std::string_view text, bool special) const {
  auto ids = tokenizer_.encode(text, special);
  if (!ids) return ids.error().in("prompt");
  return ids;
}

Result<std::vector<int32_t>> TextModel::encode_chat(const std::vector<Message>& messages) const {
  if (!has_chat_template()) {
    return make_error(ErrorCode::kUnsupported,
                      "this model has no chat template (tokenizer_config.json 'chat_template', chat_template.jinja); "
                      "use 'run --raw' to continue plain text");
  }
  auto list = nlohmann::ordered_json::array();
  for (const Message& message : messages) list.push_back({{"role", message.role}, {"content", message.content}});
  QD_TRY(const std::string prompt, tokenizer_.apply_chat_template(list, true));
  return encode(prompt, false);
}

engine::TextStreamFactory TextModel::text_streams() const {
  return [tokenizer = tokenizer_] { return std::make_unique<DecoderStream>(tokenizer); };
}

std::vector<int32_t> TextModel::stop_ids(const model::ModelConfig& config) const {
  std::vector<int32_t> ids;
  for (const int64_t id : config.eos_token_ids) ids.push_back(static_cast<int32_t>(id));
  const auto own = tokenizer_.eos_id();
  if (own && *own < config.vocab_size && std::find(ids.begin(), ids.end(), *own) == ids.end()) ids.push_back(*own);
  return ids;
}

}  // namespace quadrille::session
