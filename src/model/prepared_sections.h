// SPDX-License-Identifier: Apache-2.0
// Names and forms of the sections of a prepared model: what its reader and its writer agree on.
#pragma once

#include <cstring>

#include "formats/prepared_file.h"
#include "layout/tag.h"
#include "model/config.h"
#include "moe/expert_blob.h"

namespace quadrille::model {

inline constexpr layout::LayoutTag kBf16RowsTag{"bf16_rows", 1};  // [n, k] bf16, row-major

// Pieces of the embedding: of about this many bytes and whole sections, so that they lie end to end and each is
// checked by itself.
inline constexpr int64_t kEmbeddingPieceBytes = 64 << 10;

inline moe::MatrixHeader rows_header(int64_t n, int64_t k) {
  moe::MatrixHeader header;
  std::strncpy(header.tag, kBf16RowsTag.name, sizeof(header.tag) - 1);
  header.tag_version = kBf16RowsTag.version;
  header.n = n;
  header.k = k;
  return header;
}

inline formats::SectionForm form_of(const moe::MatrixHeader& first, const moe::MatrixHeader& second = {}) {
  static_assert(sizeof(formats::SectionForm) == 2 * sizeof(moe::MatrixHeader));
  formats::SectionForm form;
  std::memcpy(form.data(), &first, sizeof(first));
  std::memcpy(form.data() + sizeof(first), &second, sizeof(second));
  return form;
}

inline moe::MatrixHeader header_in(const formats::SectionForm& form, size_t index) {
  moe::MatrixHeader header;
  std::memcpy(&header, form.data() + index * sizeof(header), sizeof(header));
  header.tag[sizeof(header.tag) - 1] = '\0';
  return header;
}

// Rows of a piece: whole sections, of kEmbeddingPieceBytes or a little more.
inline int64_t embedding_piece_rows(int64_t hidden) {
  const int64_t row_bytes = 2 * hidden;
  int64_t rows = 1;
  while (rows * row_bytes % static_cast<int64_t>(formats::kSectionAlignment) != 0) rows *= 2;
  const int64_t unit = rows * row_bytes;
  return rows * ((kEmbeddingPieceBytes + unit - 1) / unit);
}

}  // namespace quadrille::model
