// SPDX-License-Identifier: Apache-2.0
// Templates for one sequence; pairs of sequences have no use here.
#include "model/tokenizer/post_processor.h"

#include "model/tokenizer/component.h"

namespace quadrille::tokenizer {
namespace {

constexpr size_t kMostTemplates = 32;

constexpr const char* kSupported = "TemplateProcessing, ByteLevel, BertProcessing, RobertaProcessing and Sequence";

}  // namespace

Result<PostProcessor> PostProcessor::read(const formats::JsonObject& file) {
  PostProcessor post;
  QD_TRY_STATUS(read_parts(file, "post_processor", "processors",
                           [&](const std::string& type, const formats::JsonObject& object) -> Status {
                             if (type == "ByteLevel") return {};  // moves offsets only
                             const bool is_pair = type == "BertProcessing" || type == "RobertaProcessing";
                             if (type != "TemplateProcessing" && !is_pair)
                               return unsupported_type(object, type, kSupported);
                             QD_TRY(Template made, is_pair ? read_pair(object) : read_template(object));
                             post.templates_.push_back(std::move(made));
                             if (post.templates_.size() > kMostTemplates)
                               return object.error("type", fmt::format("at most {} templates", kMostTemplates));
                             return {};
                           }));
  return post;
}

Result<PostProcessor::Template> PostProcessor::read_pair(const formats::JsonObject& object) {
  Template made;
  for (const char* key : {"cls", "sep"}) {
    const formats::Json* pair = object.find(key);
    if (pair == nullptr || !pair->is_array() || pair->size() != 2 || !(*pair)[1].is_number_unsigned() ||
        (*pair)[1].get<uint64_t>() >= INT32_MAX)
      return object.error(key, "[text, id]");
    if (!made.empty()) made.push_back(kText);
    made.push_back((*pair)[1].get<int32_t>());
  }
  return made;
}

Result<PostProcessor::Template> PostProcessor::read_template(const formats::JsonObject& object) {
  const formats::Json* single = object.find("single");
  if (single == nullptr || !single->is_array()) return object.error("single", "a list of template pieces");
  QD_TRY(const std::optional<formats::JsonObject> tokens, object.find_object("special_tokens"));
  Template made;
  size_t texts = 0;
  for (size_t i = 0; i < single->size(); ++i) {
    const formats::Json& piece = (*single)[i];
    const std::string place = fmt::format("single[{}]", i);
    if (piece.is_object() && piece.contains("Sequence")) {
      const formats::Json& sequence = piece["Sequence"];
      if (!sequence.is_object() || sequence.value("id", formats::Json()) != "A")
        return make_error(ErrorCode::kUnsupported, "{}: expected sequence 'A', found {}", object.where(place),
                          formats::json_excerpt(sequence));
      made.push_back(kText);
      if (++texts > 1)
        return make_error(ErrorCode::kUnsupported, "{}: a template that repeats its text", object.where(place));
      continue;
    }
    const bool is_special = piece.is_object() && piece.contains("SpecialToken") && piece["SpecialToken"].is_object() &&
                            piece["SpecialToken"].contains("id") && piece["SpecialToken"]["id"].is_string();
    if (!is_special)
      return make_error(ErrorCode::kInvalidData,
                        "{}: expected {{\"Sequence\": ...}} or {{\"SpecialToken\": ...}}, found {}",
                        object.where(place), formats::json_excerpt(piece));
    const auto& name = piece["SpecialToken"]["id"].get_ref<const std::string&>();
    if (!tokens) return object.error("special_tokens", "an object");
    QD_TRY(const std::optional<formats::JsonObject> token, tokens->find_object(name));
    if (!token) return tokens->error(name, "an object with the ids of this special token");
    QD_TRY(const std::optional<std::vector<int64_t>> ids, token->find_int_list("ids", 0, INT32_MAX - 1));
    if (!ids) return token->error("ids", "a list of ids");
    for (const int64_t id : *ids) made.push_back(static_cast<int32_t>(id));
  }
  if (texts == 0) return object.error("single", "a template with the sequence 'A'");
  return made;
}

std::vector<int32_t> PostProcessor::apply(std::vector<int32_t> ids) const {
  for (const Template& made : templates_) {
    std::vector<int32_t> out;
    out.reserve(ids.size() + made.size());
    for (const int32_t id : made) {
      if (id == kText) {
        out.insert(out.end(), ids.begin(), ids.end());
      } else {
        out.push_back(id);
      }
    }
    ids = std::move(out);
  }
  return ids;
}

}  // namespace quadrille::tokenizer
