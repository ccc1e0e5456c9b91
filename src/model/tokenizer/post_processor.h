// SPDX-License-Identifier: Apache-2.0
// The "post_processor" of tokenizer.json: puts special tokens around the ids of a text. Called by tokenizer.cpp.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::tokenizer {

class PostProcessor {
 public:
  // Errors: kUnsupported names the type, kInvalidData for a template without its tokens.
  static Result<PostProcessor> read(const formats::JsonObject& file);

  // The ids with the special tokens of every template around them.
  std::vector<int32_t> apply(std::vector<int32_t> ids) const;

 private:
  // One template: ids to emit; kText stands for those of the text.
  static constexpr int32_t kText = -1;
  using Template = std::vector<int32_t>;
  static Result<Template> read_template(const formats::JsonObject& object);
  static Result<Template> read_pair(const formats::JsonObject& object);

  std::vector<Template> templates_;
};

}  // namespace quadrille::tokenizer
