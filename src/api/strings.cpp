// SPDX-License-Identifier: Apache-2.0
#include "api/strings.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace quadrille::api {
namespace {

void* allocate(size_t bytes) {
  void* memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void give(std::string_view text, qd_string* to) {
  to->data = static_cast<char*>(allocate(text.size() + 1));
  std::memcpy(to->data, text.data(), text.size());
  to->data[text.size()] = '\0';
  to->size = text.size();
}

void give(std::span<const int32_t> ids, qd_ids* to) {
  to->data = static_cast<int32_t*>(allocate(ids.size_bytes() + 1));
  if (!ids.empty()) std::memcpy(to->data, ids.data(), ids.size_bytes());
  to->size = static_cast<int64_t>(ids.size());
}

}  // namespace quadrille::api

extern "C" {

void qd_string_free(qd_string* string) {
  if (string == nullptr) return;
  std::free(string->data);
  *string = {};
}

void qd_ids_free(qd_ids* ids) {
  if (ids == nullptr) return;
  std::free(ids->data);
  *ids = {};
}

}  // extern "C"
