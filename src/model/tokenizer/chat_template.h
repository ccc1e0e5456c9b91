// SPDX-License-Identifier: Apache-2.0
// Chat templates: the subset of Jinja2 that the templates of the field are written in, with the settings that
// transformers gives it (trim_blocks, lstrip_blocks, loop controls, its tojson, no change of lists and dicts).
// What lies outside of the subset is an error with line and construct. Used by Tokenizer::apply_chat_template.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "core/result.h"

namespace quadrille::tokenizer {

namespace jinja {
struct Program;
}

// What one rendering may cost. A template that goes beyond stops with kCapacity.
struct TemplateLimits {
  uint64_t steps = 20'000'000;            // nodes evaluated, list elements made, 64 bytes of text handled
  uint64_t allocated_bytes = 512u << 20;  // of all texts and lists together, alive or not
  uint64_t output_bytes = 64u << 20;
  int depth = 400;  // nested evaluations: macros that call each other
};

// Immutable and cheap to copy; render() may run on several threads at once.
class ChatTemplate {
 public:
  // `where` heads the errors. Errors: kInvalidData for what is no Jinja, kUnsupported for what is outside of the
  // subset.
  static Result<ChatTemplate> parse(std::string text, std::string_view where);

  // `variables` (an object or null): bos_token, eos_token, tools, enable_thinking ...; tools and documents are none
  // unless given. Errors: kInvalidArgument, also for raise_exception("text"), whose text ends the message; kCapacity.
  Result<std::string> render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                             const nlohmann::ordered_json& variables, const TemplateLimits& limits = {}) const;

 private:
  std::shared_ptr<const jinja::Program> program_;
};

}  // namespace quadrille::tokenizer
