// SPDX-License-Identifier: Apache-2.0
// JSON that nobody vouches for: a bounded parse, and typed reads whose errors name the file, the key, what was found
// and what is legal. Used for safetensors headers, shard indexes, config.json, tokenizer.json.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/result.h"

namespace quadrille::formats {

using Json = nlohmann::json;

struct JsonLimits {
  uint64_t max_bytes = 64ull << 20;
  int max_depth = 64;
  uint64_t max_values = 20'000'000;  // of any kind: bounds the memory of the tree
  bool reject_duplicate_keys = true;
};

// `where` heads every error (a file name). Integers stay exact: one outside of int64/uint64 becomes a float, which
// json_int() refuses. Errors: kInvalidData, with line and column of a syntax error.
Result<Json> parse_json(std::string_view text, std::string_view where, const JsonLimits& limits = {});
// The whole file, read through the descriptor. Errors: kNotFound, kIo, kInvalidData.
Result<Json> parse_json_file(const std::string& path, const JsonLimits& limits = {});
// A text file, at most `max_bytes` (chat_template.jinja and the like). Errors: kNotFound, kIo, kInvalidData.
Result<std::string> read_text_file(const std::string& path, uint64_t max_bytes = 64ull << 20);

// One object and its place, for typed reads: JsonObject(json, "models/x/config.json", "rope_scaling").
// A key that is missing and a key that is null are the same thing. The reads without a default require the key.
// All errors are kInvalidData.
class JsonObject {
 public:
  // `object` must be a JSON object that outlives this view (QD_CHECK): test it with is_object() or get one from
  // object().
  JsonObject(const Json& object, std::string where, std::string path = "");

  const Json& json() const { return *object_; }
  // Null when the key is missing or null.
  const Json* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // `minimum` and `maximum` are legal values themselves.
  Result<int64_t> get_int(std::string_view key, int64_t minimum, int64_t maximum) const;
  Result<std::optional<int64_t>> find_int(std::string_view key, int64_t minimum, int64_t maximum) const;
  // Finite; an integer is taken as a number.
  Result<double> get_double(std::string_view key, double minimum, double maximum) const;
  Result<std::optional<double>> find_double(std::string_view key, double minimum, double maximum) const;
  Result<bool> get_bool(std::string_view key) const;
  Result<std::optional<bool>> find_bool(std::string_view key) const;
  Result<std::string> get_string(std::string_view key) const;
  Result<std::optional<std::string>> find_string(std::string_view key) const;
  Result<std::optional<std::vector<int64_t>>> find_int_list(std::string_view key, int64_t minimum,
                                                            int64_t maximum) const;
  Result<std::optional<std::vector<std::string>>> find_string_list(std::string_view key) const;
  // An int or a list of ints (eos_token_id); [] when missing.
  Result<std::vector<int64_t>> find_int_or_list(std::string_view key, int64_t minimum, int64_t maximum) const;
  Result<std::optional<JsonObject>> find_object(std::string_view key) const;

  // "FILE: 'rope_scaling.factor'", the head of an error about this key.
  std::string where(std::string_view key) const;
  // An error "FILE: 'KEY': expected EXPECTED, found 'VALUE'".
  Error error(std::string_view key, std::string_view expected) const;

 private:
  const Json* object_;
  std::string where_;
  std::string path_;  // of this object inside the file, "" at the top
};

// A value for an error message, cut after about 60 characters.
std::string json_excerpt(const Json& value);

}  // namespace quadrille::formats
