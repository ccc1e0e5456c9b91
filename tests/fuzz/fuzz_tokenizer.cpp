// SPDX-License-Identifier: Apache-2.0
// Any bytes as tokenizer.json, a NUL, and a text: an error, or ids that are tokens, whose text streams as it decodes.
#include <cstdlib>
#include <string>
#include <string_view>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/unicode.h"

namespace {

using namespace quadrille::tokenizer;  // NOLINT(google-build-using-namespace)

constexpr size_t kMaxText = 256;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_decoding(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const bool skip : {false, true}) {
    const auto text = tokenizer.decode(ids, skip);
    require(text.ok() && !first_invalid_utf8(*text));
    StreamDecoder stream(tokenizer, skip);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string part = stream.push(id);
      require(!first_invalid_utf8(part));
      streamed += part;
    }
    require(streamed + stream.finish() == *text);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const auto tokenizer = Tokenizer::parse(input.substr(0, end), "fuzz");
  if (!tokenizer) return 0;
  const std::string_view text = end < size ? input.substr(end + 1, kMaxText) : " a<s>  b\n\xC3\xA9 12'll";
  for (const bool parse_special : {true, false}) {
    const auto ids = tokenizer->encode(text, true, parse_special);
    if (!ids) continue;
    for (const int32_t id : *ids) require(id >= 0);
    check_decoding(*tokenizer, *ids);
  }
  std::vector<int32_t> all;
  for (int32_t id = 0; id < std::min(tokenizer->vocab_size() + 2, 400); ++id) all.push_back(id);
  check_decoding(*tokenizer, all);
  return 0;
}
