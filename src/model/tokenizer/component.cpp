// SPDX-License-Identifier: Apache-2.0
// One walk over nested sequences for all four kinds of parts.
#include "model/tokenizer/component.h"

namespace quadrille::tokenizer {
namespace {

using ReadOne = std::function<Status(const std::string&, const formats::JsonObject&)>;

// `base` and `path` name the object for errors. The depth is bounded by the JSON reader's own limit.
Status read_part(const formats::JsonObject& object, const std::string& base, const std::string& path,
                 std::string_view list_key, const ReadOne& read_one) {
  QD_TRY(const std::string type, object.get_string("type"));
  if (type != "Sequence") return read_one(type, object);
  const formats::Json* list = object.find(list_key);
  if (list == nullptr || !list->is_array()) return object.error(list_key, "a list of parts");
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string place = fmt::format("{}.{}[{}]", path, list_key, i);
    if (!(*list)[i].is_object())
      return make_error(ErrorCode::kInvalidData, "{}: '{}': expected an object, found {}", base, place,
                        formats::json_excerpt((*list)[i]));
    QD_TRY_STATUS(read_part(formats::JsonObject((*list)[i], base, place), base, place, list_key, read_one));
  }
  return {};
}

// JsonObject says "FILE: 'PATH'"; the part before is the file.
std::string file_of(const formats::JsonObject& file, std::string_view key) {
  const std::string where = file.where(key);
  const std::string tail = fmt::format(": '{}'", key);
  return where.ends_with(tail) ? where.substr(0, where.size() - tail.size()) : where;
}

}  // namespace

Status read_parts(const formats::JsonObject& file, std::string_view key, std::string_view list_key,
                  const ReadOne& read_one) {
  QD_TRY(const std::optional<formats::JsonObject> object, file.find_object(key));
  if (!object) return {};
  return read_part(*object, file_of(file, key), std::string(key), list_key, read_one);
}

Error unsupported_type(const formats::JsonObject& object, std::string_view type, std::string_view supported) {
  return make_error(ErrorCode::kUnsupported, "{}: '{}' is not supported; supported are {}", object.where("type"), type,
                    supported);
}

Result<bool> read_flag(const formats::JsonObject& object, std::string_view key, bool otherwise) {
  QD_TRY(const std::optional<bool> value, object.find_bool(key));
  return value.value_or(otherwise);
}

}  // namespace quadrille::tokenizer
