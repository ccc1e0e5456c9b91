// SPDX-License-Identifier: Apache-2.0
// Texts and ids on their way to a C caller, who frees them. Called by the units whose functions give some.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "quadrille/c_model.h"

namespace quadrille::api {

// Throws std::bad_alloc, which guarded() reports.
void give(std::string_view text, qd_string* to);
void give(std::span<const int32_t> ids, qd_ids* to);

// What a caller gave; null with size 0 is empty.
inline std::string_view text_of(const char* data, size_t size) {
  return size == 0 ? std::string_view() : std::string_view(data, size);
}

}  // namespace quadrille::api
