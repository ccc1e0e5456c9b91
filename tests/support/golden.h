// SPDX-License-Identifier: Apache-2.0
// Where test data lies: tests/data in the repository, and the whole golden folder where QUADRILLE_GOLDEN names it.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace quadrille::testing {

inline std::string data_path(const std::string& name) {
  return std::string(QD_TEST_DATA_DIR) + "/" + name;
}
inline std::string source_path(const std::string& name) {
  return std::string(QD_SOURCE_DIR) + "/" + name;
}

// A path inside the golden folder, or nothing when QUADRILLE_GOLDEN is not set:
//   const auto path = golden_path("models/olmoe"); if (!path) GTEST_SKIP() << kNoGolden;
inline std::optional<std::string> golden_path(const std::string& name) {
  const char* folder = std::getenv("QUADRILLE_GOLDEN");
  if (folder == nullptr || *folder == '\0') return std::nullopt;
  return std::string(folder) + "/" + name;
}
inline constexpr const char* kNoGolden = "needs the golden folder: set QUADRILLE_GOLDEN to it";

}  // namespace quadrille::testing
