// SPDX-License-Identifier: Apache-2.0
// JSON documents as values. Called by chat_template.cpp.
#pragma once

#include <nlohmann/json.hpp>

#include "model/tokenizer/template/runtime.h"

namespace quadrille::tokenizer::jinja {

Value value_of(Runtime& runtime, const nlohmann::ordered_json& json);

}  // namespace quadrille::tokenizer::jinja
