// SPDX-License-Identifier: Apache-2.0
// Any bytes as a chat template, a NUL, and messages as JSON: an error or a text within the limits.
#include <cstdlib>
#include <string>
#include <string_view>

#include "model/tokenizer/chat_template.h"
#include "model/tokenizer/unicode.h"

namespace {

using namespace quadrille::tokenizer;  // NOLINT(google-build-using-namespace)

constexpr const char* kMessages =
    R"([{"role":"system","content":"S"},{"role":"user","content":"Hi \u00e9\n","n":3},)"
    R"({"role":"assistant","content":"<think>x</think>ok","tool_calls":[{"function":{"name":"f","arguments":{"a":[1,2.5,null,true]}}}]}])";

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const auto parsed = ChatTemplate::parse(std::string(input.substr(0, end)), "fuzz");
  if (!parsed) return 0;
  const std::string_view given = end < size ? input.substr(end + 1) : kMessages;
  const auto messages = nlohmann::ordered_json::parse(given, nullptr, false);
  if (messages.is_discarded()) return 0;
  TemplateLimits limits;
  limits.steps = 200'000;
  limits.allocated_bytes = 16 << 20;
  limits.output_bytes = 1 << 20;
  const auto text = parsed->render(messages, true, {{"bos_token", "<s>"}, {"eos_token", "</s>"}}, limits);
  if (text) require(text->size() <= limits.output_bytes && !first_invalid_utf8(*text));
  return 0;
}
