// SPDX-License-Identifier: Apache-2.0
// The border of the template interpreter: failures become Errors here.
#include "model/tokenizer/chat_template.h"

#include "model/tokenizer/template/interpreter.h"
#include "model/tokenizer/template/json_text.h"
#include "model/tokenizer/template/parser.h"
#include "model/tokenizer/unicode.h"

namespace quadrille::tokenizer {
namespace {

constexpr size_t kMaxTemplateBytes = 4 << 20;

using Variables = std::vector<std::pair<std::string, jinja::Value>>;

Variables make_variables(jinja::Runtime& runtime, const nlohmann::ordered_json& messages, bool add_generation_prompt,
                         const nlohmann::ordered_json& given) {
  Variables variables;
  variables.emplace_back("tools", jinja::None{});
  variables.emplace_back("documents", jinja::None{});
  if (given.is_object())
    for (const auto& [name, value] : given.items()) variables.emplace_back(name, jinja::value_of(runtime, value));
  variables.emplace_back("messages", jinja::value_of(runtime, messages));
  variables.emplace_back("add_generation_prompt", jinja::Value(add_generation_prompt));
  return variables;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::parse(std::string text, std::string_view where) {
  if (text.size() > kMaxTemplateBytes)
    return make_error(ErrorCode::kCapacity, "{}: expected at most {} bytes of template, found {}", where,
                      kMaxTemplateBytes, text.size());
  if (const std::optional<size_t> offset = first_invalid_utf8(text))
    return make_error(ErrorCode::kInvalidData, "{}: invalid UTF-8 at byte {}", where, *offset);
  auto program = std::make_shared<jinja::Program>();
  program->where = where;
  try {
    program->body = jinja::Parser(jinja::tokenize(text)).run();
  } catch (const jinja::TemplateFailure& failure) {
    return failure.error.in(where);
  }
  ChatTemplate made;
  made.program_ = std::move(program);
  return made;
}

Result<std::string> ChatTemplate::render(const nlohmann::ordered_json& messages, bool add_generation_prompt,
                                         const nlohmann::ordered_json& variables, const TemplateLimits& limits) const {
  if (!variables.is_null() && !variables.is_object())
    return make_error(ErrorCode::kInvalidArgument, "template variables: expected an object, found {}",
                      variables.type_name());
  try {
    jinja::Interpreter interpreter(*program_, limits);
    return interpreter.run(make_variables(interpreter.runtime(), messages, add_generation_prompt, variables));
  } catch (const jinja::TemplateFailure& failure) {
    return failure.error.in(program_->where);
  }
}

}  // namespace quadrille::tokenizer
