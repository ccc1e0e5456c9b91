// SPDX-License-Identifier: Apache-2.0
// The way of a text: cut at raw added tokens, normalize, cut at normalized added tokens, pre-tokenize, BPE, template.
#include "model/tokenizer/tokenizer.h"

#include <algorithm>

#include "model/tokenizer/component.h"
#include "model/tokenizer/tokenizer_impl.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

constexpr uint64_t kMaxFileBytes = 256ull << 20;
constexpr size_t kMaxTextBytes = 1ull << 30;

formats::JsonLimits file_limits() {
  formats::JsonLimits limits;
  limits.max_bytes = kMaxFileBytes;
  limits.reject_duplicate_keys = false;  // vocabularies with a text twice exist; the last one counts
  return limits;
}

Status check_version(const formats::JsonObject& file) {
  QD_TRY(const std::optional<std::string> version, file.find_string("version"));
  if (version && *version != "1.0")
    return make_error(ErrorCode::kUnsupported, "{}: version '{}' is not supported; only '1.0' is",
                      file.where("version"), *version);
  return {};
}

// The characters of a span that start the prompt: the first one, when the span does.
size_t start_bytes_of(std::string_view text, size_t begin, size_t start_bytes) {
  return begin < start_bytes ? std::min(start_bytes - begin, text.size()) : 0;
}

}  // namespace

Result<std::shared_ptr<Tokenizer::Impl>> Tokenizer::Impl::build(const formats::Json& json, std::string_view where) {
  if (!json.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: expected an object, found {}", where, formats::json_excerpt(json));
  const formats::JsonObject file(json, std::string(where));
  QD_TRY_STATUS(check_version(file));
  auto impl = std::make_shared<Impl>();
  impl->where = where;
  QD_TRY(impl->model, BpeModel::read(file));
  QD_TRY(impl->normalizers, read_normalizer(file));
  QD_TRY(impl->pre_tokenizers, read_pre_tokenizer(file));
  QD_TRY(impl->post_processor, PostProcessor::read(file));
  QD_TRY(impl->decoders, read_decoder(file));
  QD_TRY(std::vector<AddedToken> tokens, read_added_tokens(file));
  QD_TRY(impl->added, AddedTokens::create(std::move(tokens), impl->model.vocabulary(), where));
  for (const auto& [text, id] : impl->model.vocabulary()) {
    impl->vocab_size = std::max(impl->vocab_size, id + 1);
    if (static_cast<size_t>(id) >= impl->model_texts.size()) impl->model_texts.resize(static_cast<size_t>(id) + 1);
    impl->model_texts[static_cast<size_t>(id)] = &text;
  }
  for (const AddedToken& token : impl->added.tokens()) {
    impl->vocab_size = std::max(impl->vocab_size, token.id + 1);
    if (!token.normalized) continue;
    AlignedText form{token.content, 0};
    QD_TRY_STATUS(impl->normalize(form));
    impl->added.set_normalized_form(token, form.text);
  }
  return impl;
}

const std::string* Tokenizer::Impl::text_of(int32_t id) const {
  if (const AddedToken* token = added.by_id(id)) return &token->content;
  return id >= 0 && static_cast<size_t>(id) < model_texts.size() ? model_texts[static_cast<size_t>(id)] : nullptr;
}

std::optional<int32_t> Tokenizer::Impl::id_of(std::string_view token) const {
  for (const AddedToken& known : added.tokens())
    if (known.content == token) return known.id;
  const auto place = model.vocabulary().find(token);
  return place == model.vocabulary().end() ? std::nullopt : std::optional(place->second);
}

Status Tokenizer::Impl::normalize(AlignedText& text) const {
  for (const auto& normalizer : normalizers) QD_TRY_STATUS(normalizer->apply(text));
  return {};
}

Status Tokenizer::Impl::encode_span(AlignedText text, bool parse_special, BpeModel::Scratch& scratch,
                                    std::vector<int32_t>& ids) const {
  QD_TRY_STATUS(normalize(text));
  for (const Span& span : added.split_normalized(text.text, parse_special)) {
    if (span.id >= 0) {
      ids.push_back(span.id);
      continue;
    }
    std::string part = text.text.substr(span.begin, span.end - span.begin);
    const size_t start_bytes = start_bytes_of(part, span.begin, text.start_bytes);
    QD_TRY_STATUS(encode_piece(std::move(part), start_bytes, scratch, ids));
  }
  return {};
}

Status Tokenizer::Impl::encode_piece(std::string text, size_t start_bytes, BpeModel::Scratch& scratch,
                                     std::vector<int32_t>& ids) const {
  Pieces pieces;
  pieces.text = std::move(text);
  if (!pieces.text.empty()) pieces.pieces.push_back({0, pieces.text.size(), start_bytes});
  for (const auto& pre_tokenizer : pre_tokenizers) QD_TRY_STATUS(pre_tokenizer->apply(pieces));
  for (const Pieces::Piece& piece : pieces.pieces) QD_TRY_STATUS(model.encode(pieces.view(piece), scratch, ids));
  return {};
}

Result<Tokenizer> Tokenizer::parse(std::string_view tokenizer_json, std::string_view where) {
  QD_TRY(const formats::Json json, formats::parse_json(tokenizer_json, where, file_limits()));
  QD_TRY(std::shared_ptr<Impl> impl, Impl::build(json, where));
  return Tokenizer(std::move(impl));
}

Result<Tokenizer> Tokenizer::load(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  std::shared_ptr<Impl> impl;
  {
    QD_TRY(const formats::Json json, formats::parse_json_file(path, file_limits()));
    QD_TRY(impl, Impl::build(json, path));
  }
  QD_TRY_STATUS(read_tokenizer_files(folder, *impl));
  return Tokenizer(std::move(impl));
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, bool add_special_tokens,
                                               bool parse_special) const {
  if (text.size() > kMaxTextBytes)
    return make_error(ErrorCode::kCapacity, "text of {} bytes: expected at most {}", text.size(), kMaxTextBytes);
  if (const std::optional<size_t> offset = first_invalid_utf8(text))
    return make_error(ErrorCode::kInvalidArgument,
                      "text: expected UTF-8, found byte 0x{:02X} at offset {} that is no part of a character",
                      static_cast<unsigned>(static_cast<uint8_t>(text[*offset])), *offset);
  BpeModel::Scratch scratch;
  std::vector<int32_t> ids;
  for (const Span& span : impl_->added.split_raw(text, parse_special)) {
    if (span.id >= 0) {
      ids.push_back(span.id);
      continue;
    }
    AlignedText part{std::string(text.substr(span.begin, span.end - span.begin)), 0};
    if (span.begin == 0) part.start_bytes = character_length(part.text[0]);
    if (Status status = impl_->encode_span(std::move(part), parse_special, scratch, ids); !status)
      return status.error().in(impl_->where);
  }
  if (add_special_tokens) ids = impl_->post_processor.apply(std::move(ids));
  return ids;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  const auto negative = std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id < 0; });
  if (negative != ids.end())
    return make_error(ErrorCode::kInvalidArgument, "token {}: expected an id of at least 0, found {}",
                      negative - ids.begin(), *negative);
  StreamDecoder stream(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) text += stream.push(id);
  text += stream.finish();
  return text;
}

int32_t Tokenizer::vocab_size() const {
  return impl_->vocab_size;
}
bool Tokenizer::has_token(int32_t id) const {
  return impl_->text_of(id) != nullptr;
}
std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  return impl_->id_of(token);
}
std::string Tokenizer::token_text(int32_t id) const {
  const std::string* text = impl_->text_of(id);
  return text == nullptr ? std::string() : *text;
}
bool Tokenizer::is_special(int32_t id) const {
  const std::string* text = impl_->text_of(id);
  return text != nullptr && impl_->added.is_special(*text);
}
std::optional<int32_t> Tokenizer::bos_id() const {
  return impl_->bos_id;
}
std::optional<int32_t> Tokenizer::eos_id() const {
  return impl_->eos_id;
}
bool Tokenizer::has_chat_template() const {
  return impl_->chat_template.has_value();
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : impl_(tokenizer.impl_),
      chain_(std::make_unique<DecodeChain>(impl_->decoders)),
      skip_special_tokens_(skip_special_tokens) {}
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(int32_t id) {
  const std::string* text = impl_->text_of(id);
  if (text == nullptr || (skip_special_tokens_ && impl_->added.is_special(*text))) return "";
  chain_->push_token(*text);
  return chain_->take();
}

std::string StreamDecoder::finish() {
  chain_->finish();
  return chain_->take();
}

}  // namespace quadrille::tokenizer
