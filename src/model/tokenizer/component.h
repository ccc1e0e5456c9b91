// SPDX-License-Identifier: Apache-2.0
// Reading the tagged parts of tokenizer.json ({"type": ..., ...}): sequences are flattened, unknown types refused by
// name. Used by the readers of normalizer, pre-tokenizer, post-processor and decoder.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "core/result.h"
#include "formats/json.h"

namespace quadrille::tokenizer {

// Calls `read_one(type, object)` for the part under `key` of `file`, or in order for all parts of a "Sequence", whose
// list stands under `list_key`. A part that is null or missing calls nothing.
Status read_parts(const formats::JsonObject& file, std::string_view key, std::string_view list_key,
                  const std::function<Status(const std::string& type, const formats::JsonObject& object)>& read_one);

// kUnsupported: "FILE: 'normalizer.type': 'Nmt' is not supported; supported are ..."
Error unsupported_type(const formats::JsonObject& object, std::string_view type, std::string_view supported);

// The value of a flag, `otherwise` when it is missing or null.
Result<bool> read_flag(const formats::JsonObject& object, std::string_view key, bool otherwise);

}  // namespace quadrille::tokenizer
