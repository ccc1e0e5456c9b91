// SPDX-License-Identifier: Apache-2.0
// The files beside tokenizer.json: names of special tokens and the chat template, wherever the model keeps it.
#include <algorithm>
#include <array>
#include <filesystem>

#include "model/tokenizer/tokenizer_impl.h"

namespace quadrille::tokenizer {
namespace {

constexpr uint64_t kMaxTemplateBytes = 4 << 20;

bool is_file(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

constexpr std::array<const char*, 7> kSpecialKeys = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                     "pad_token", "cls_token", "mask_token"};

// Keys ending in "_token": a text, or an added token with its "content".
Status read_special_texts(const formats::JsonObject& file, std::map<std::string, std::string>& texts) {
  for (const char* key : kSpecialKeys) {
    const formats::Json* value = file.find(key);
    if (value == nullptr) continue;
    if (value->is_string()) {
      texts.emplace(key, value->get<std::string>());
    } else if (value->is_object()) {
      QD_TRY(const std::optional<formats::JsonObject> token, file.find_object(key));
      QD_TRY(const std::string content, token->get_string("content"));
      texts.emplace(key, content);
    } else if (!value->is_boolean()) {
      return file.error(key, "a token");
    }
  }
  return {};
}

Result<std::optional<formats::Json>> read_object(const std::string& path) {
  if (!is_file(path)) return std::optional<formats::Json>();
  formats::JsonLimits limits;
  limits.reject_duplicate_keys = false;
  QD_TRY(formats::Json json, formats::parse_json_file(path, limits));
  if (!json.is_object())
    return make_error(ErrorCode::kInvalidData, "{}: expected an object, found {}", path, formats::json_excerpt(json));
  return std::optional(std::move(json));
}

// "chat_template": a text, or a list of {"name", "template"} of which "default" counts.
Result<std::optional<std::string>> find_template(const formats::JsonObject& config) {
  const formats::Json* value = config.find("chat_template");
  if (value == nullptr) return std::optional<std::string>();
  if (value->is_string()) return std::optional(value->get<std::string>());
  if (!value->is_array()) return config.error("chat_template", "a text or a list of named templates");
  std::optional<std::string> found;
  for (const formats::Json& item : *value) {
    if (!item.is_object() || !item.contains("name") || !item["name"].is_string() || !item.contains("template") ||
        !item["template"].is_string())
      return config.error("chat_template", "a list of {\"name\": text, \"template\": text}");
    if (item["name"] == "default" || value->size() == 1) found = item["template"].get<std::string>();
  }
  if (!found && !value->empty()) return config.error("chat_template", "a template named 'default'");
  return found;
}

}  // namespace

Status read_tokenizer_files(const std::string& folder, Tokenizer::Impl& impl) {
  const std::string config_path = folder + "/tokenizer_config.json";
  const std::string map_path = folder + "/special_tokens_map.json";
  const std::string template_path = folder + "/chat_template.jinja";
  QD_TRY(const std::optional<formats::Json> config, read_object(config_path));
  QD_TRY(const std::optional<formats::Json> map, read_object(map_path));
  std::optional<std::string> text;
  std::string text_place;
  if (config) {
    const formats::JsonObject object(*config, config_path);
    QD_TRY_STATUS(read_special_texts(object, impl.special_texts));
    QD_TRY(text, find_template(object));
    text_place = object.where("chat_template");
  }
  if (map) QD_TRY_STATUS(read_special_texts(formats::JsonObject(*map, map_path), impl.special_texts));
  if (is_file(template_path)) {  // newer files win over the older key
    QD_TRY(text, formats::read_text_file(template_path, kMaxTemplateBytes));
    text_place = template_path;
  }
  const auto id_of_special = [&](const char* key) {
    const auto place = impl.special_texts.find(key);
    return place == impl.special_texts.end() ? std::nullopt : impl.id_of(place->second);
  };
  impl.bos_id = id_of_special("bos_token");
  impl.eos_id = id_of_special("eos_token");
  if (!text) return {};
  impl.chat_template = ChatTemplate::parse(std::move(*text), text_place);
  return {};
}

Result<std::string> Tokenizer::apply_chat_template(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                                   const nlohmann::ordered_json& extra) const {
  if (!impl_->chat_template)
    return make_error(ErrorCode::kNotFound,
                      "{}: no chat template: neither chat_template.jinja nor 'chat_template' in tokenizer_config.json "
                      "stands beside it",
                      impl_->where);
  if (!extra.is_null() && !extra.is_object())
    return make_error(ErrorCode::kInvalidArgument, "template variables: expected an object, found {}",
                      extra.type_name());
  if (!*impl_->chat_template) return impl_->chat_template->error();
  nlohmann::ordered_json variables = nlohmann::ordered_json::object();
  for (const auto& [key, text] : impl_->special_texts) variables[key] = text;
  if (extra.is_object())
    for (const auto& [key, value] : extra.items()) variables[key] = value;
  return (*impl_->chat_template)->render(messages, add_generation_prompt, variables);
}

}  // namespace quadrille::tokenizer
