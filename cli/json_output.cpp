// SPDX-License-Identifier: Apache-2.0
// A report appears under its name only when it is whole.
#include "cli/json_output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace quadrille::cli {

std::string json_text(const nlohmann::json& json, int indent) {
  return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

Status write_json(Console& console, const std::string& path, const nlohmann::json& json) {
  const std::string text = json_text(json) + "\n";
  if (path == "-") {
    console.write(text);
    return {};
  }
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  if (file && std::rename(partial.c_str(), path.c_str()) == 0) return {};
  const int failed = errno;
  std::remove(partial.c_str());
  return make_error(ErrorCode::kIo, "{}: cannot write the report: {}", path, std::strerror(failed));
}

}  // namespace quadrille::cli
