// SPDX-License-Identifier: Apache-2.0
// JSON for scripts: one way of printing it and of writing it to a file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/console.h"
#include "core/result.h"

namespace quadrille::cli {

// One line when indent < 0. Bytes that are no UTF-8 (a file name) become U+FFFD; a NaN becomes null.
std::string json_text(const nlohmann::json& json, int indent = 2);
// Writes PATH.partial and renames it; "-" prints to stdout. Errors: kIo.
Status write_json(Console& console, const std::string& path, const nlohmann::json& json);

}  // namespace quadrille::cli
