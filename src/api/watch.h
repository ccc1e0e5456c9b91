// SPDX-License-Identifier: Apache-2.0
// What the C functions of models read of their callers' structs: progress callbacks, choices, and JSON on its way out.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>

#include "core/result.h"
#include "kernels/api/problems.h"
#include "quadrille/c_model.h"
#include "session/watched_work.h"

namespace quadrille::api {

inline session::Watch watch_of(const qd_progress* progress) {
  if (progress == nullptr || progress->report == nullptr) return {};
  return [own = *progress](const std::string& what, uint64_t done, uint64_t total) {
    return own.report(own.context, what.c_str(), done, total) == 0;
  };
}

inline Status check_choice(const char* name, int64_t value, std::initializer_list<int64_t> legal) {
  std::string list;
  for (const int64_t choice : legal) {
    if (value == choice) return {};
    list += (list.empty() ? "" : ", ") + std::to_string(choice);
  }
  return make_error(ErrorCode::kInvalidArgument, "{}: expected one of {}, found {}", name, list, value);
}

inline Result<kernels::Numerics> numerics_of(int32_t numerics) {
  QD_TRY_STATUS(check_choice("numerics", numerics, {QD_NUMERICS_EXACT, QD_NUMERICS_VLLM}));
  return numerics == QD_NUMERICS_VLLM ? kernels::Numerics::kVllm : kernels::Numerics::kExact;
}

inline Result<int> threads_of(int32_t threads) {
  constexpr int32_t kMost = 1024;
  if (threads >= 0 && threads <= kMost) return int{threads};
  return make_error(ErrorCode::kInvalidArgument, "threads: expected 0 (one for each usable core) to {}, found {}",
                    kMost, threads);
}

// On one line; bytes that are no UTF-8 (a file name) become U+FFFD, a NaN null.
inline std::string json_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace quadrille::api
