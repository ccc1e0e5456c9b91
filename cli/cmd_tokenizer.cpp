// SPDX-License-Identifier: Apache-2.0
// quadrille tokenize, detokenize, template: one JSON value a line in, one a line out. They need the tokenizer files of
// a folder only.
#include <functional>
#include <memory>

#include "cli/commands.h"
#include "cli/json_output.h"
#include "cli/line_reader.h"
#include "cli/signals.h"
#include "formats/json.h"
#include "model/tokenizer/tokenizer.h"

namespace quadrille::cli {
namespace {

using tokenizer::Tokenizer;

struct TokenizerOptions {
  std::string folder;
  bool no_special = false;
  bool no_generation_prompt = false;
};

// The answer to one line; `line` is its text, `where` heads errors.
using LineFunction =
    std::function<Result<nlohmann::json>(const Tokenizer&, const std::string& line, const std::string& where)>;

// Flushes each line: the other side may wait for it.
Status for_each_line(Console& console, const std::string& folder, const LineFunction& answer) {
  QD_TRY(const Tokenizer tokenizer, Tokenizer::load(folder));
  LineReader reader;
  std::string line;
  for (int64_t number = 1; !console.closed(); ++number) {
    QD_TRY(const LineReader::Outcome outcome, reader.next(&line));
    if (outcome == LineReader::Outcome::kInterrupted) return interrupted_error("reading stdin");
    if (outcome == LineReader::Outcome::kEnd) return {};
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    const std::string where = fmt::format("stdin, line {}", number);
    auto json = answer(tokenizer, line, where);
    if (!json) return json.error();
    console.print("{}\n", json_text(*json, -1));
    console.flush();
  }
  return {};
}

Error expected_error(const std::string& where, const char* expected, const formats::Json& found) {
  return make_error(ErrorCode::kInvalidData, "{}: expected {}, found '{}'", where, expected,
                    formats::json_excerpt(found));
}

Result<nlohmann::json> tokenize_line(const Tokenizer& tokenizer, const std::string& line, const std::string& where,
                                     bool special) {
  QD_TRY(const formats::Json json, formats::parse_json(line, where));
  if (!json.is_string()) return expected_error(where, "a JSON string", json);
  const auto ids = tokenizer.encode(json.get_ref<const std::string&>(), special);
  if (!ids) return ids.error().in(where);
  return nlohmann::json(*ids);
}

Result<nlohmann::json> detokenize_line(const Tokenizer& tokenizer, const std::string& line, const std::string& where,
                                       bool skip_special) {
  QD_TRY(const formats::Json json, formats::parse_json(line, where));
  if (!json.is_array()) return expected_error(where, "a JSON list of token ids", json);
  std::vector<int32_t> ids;
  for (const formats::Json& id : json) {
    const bool fits = id.is_number_integer() && id >= 0 && id <= 0x7fffffff;
    if (!fits) return expected_error(where, "token ids", id);
    ids.push_back(id.get<int32_t>());
  }
  const auto text = tokenizer.decode(ids, skip_special);
  if (!text) return text.error().in(where);
  return nlohmann::json(*text);
}

Result<nlohmann::json> template_line(const Tokenizer& tokenizer, const std::string& line, const std::string& where,
                                     bool generation_prompt) {
  QD_TRY(const formats::Json json, formats::parse_json(line, where));
  if (!json.is_array()) return expected_error(where, "a JSON list of messages", json);
  // Again, keeping the order of keys, which a template can see.
  const auto messages = nlohmann::ordered_json::parse(line, nullptr, false);
  const auto prompt = tokenizer.apply_chat_template(messages, generation_prompt);
  if (!prompt) return prompt.error().in(where);
  return nlohmann::json(*prompt);
}

void add_folder(CLI::App& app, TokenizerOptions& options) {
  app.add_option("MODEL", options.folder, "Folder with the tokenizer files")->required()->type_name("");
}

}  // namespace

void add_tokenizer_commands(CLI::App& program, std::vector<Command>& commands) {
  auto options = std::make_shared<TokenizerOptions>();
  auto* tokenize = program.add_subcommand("tokenize", "JSON string a line in, JSON list of token ids a line out");
  add_folder(*tokenize, *options);
  tokenize->add_flag("--no-special", options->no_special, "Without the special tokens around a text (<s>)");
  commands.push_back({tokenize, [options](Console& console) {
                        return for_each_line(console, options->folder, [&](const auto&... arguments) {
                          return tokenize_line(arguments..., !options->no_special);
                        });
                      }});

  auto* detokenize = program.add_subcommand("detokenize", "JSON list of token ids a line in, JSON string a line out");
  add_folder(*detokenize, *options);
  detokenize->add_flag("--no-special", options->no_special, "Special tokens give no text");
  commands.push_back({detokenize, [options](Console& console) {
                        return for_each_line(console, options->folder, [&](const auto&... arguments) {
                          return detokenize_line(arguments..., options->no_special);
                        });
                      }});

  auto* render = program.add_subcommand("template", "JSON list of messages a line in, the prompt as JSON string out");
  add_folder(*render, *options);
  render->add_flag("--no-generation-prompt", options->no_generation_prompt, "Without the opening of the answer");
  commands.push_back({render, [options](Console& console) {
                        return for_each_line(console, options->folder, [&](const auto&... arguments) {
                          return template_line(arguments..., !options->no_generation_prompt);
                        });
                      }});
}

}  // namespace quadrille::cli
