// SPDX-License-Identifier: Apache-2.0
// Checks the sections of a prepared file when they are used first: what every token reads before the first step, rows
// of the embedding and experts when a token asks for them. So opening a file reads no weights, and no damaged byte is
// computed with. Made by load_prepared.h, asked by model.cpp and, through the layers' guards, by moe/layer.h.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/result.h"
#include "core/thread_pool.h"
#include "formats/prepared_file.h"
#include "moe/expert_guard.h"

namespace quadrille::model {

class FirstUse {
 public:
  // Keeps the file mapped. `pool` must outlive this object and is not in a run when it is asked.
  FirstUse(std::shared_ptr<const formats::PreparedFile> file, ThreadPool* pool);
  ~FirstUse();
  FirstUse(const FirstUse&) = delete;
  FirstUse& operator=(const FirstUse&) = delete;

  const formats::PreparedFile& file() const { return *file_; }
  void add(const formats::PreparedSection& section) { every_token_.push_back(&section); }
  // The pieces of the embedding in order, `rows` rows each.
  void set_embedding(std::vector<const formats::PreparedSection*> pieces, int64_t rows);
  // The guard of a layer whose experts are these, in order. Valid as long as this object.
  moe::ExpertGuard* add_experts(std::vector<const formats::PreparedSection*> experts);

  // Errors: those of PreparedFile::check().
  Status before_step(std::span<const int32_t> ids);
  // All of it now.
  Status check_all();

 private:
  class Experts;
  // Sections of which each is checked once.
  class Once;
  std::shared_ptr<const formats::PreparedFile> file_;
  ThreadPool* pool_;
  std::vector<const formats::PreparedSection*> every_token_;
  std::unique_ptr<Once> embedding_;
  int64_t embedding_rows_ = 1;  // a piece
  std::vector<std::unique_ptr<Experts>> experts_;
};

}  // namespace quadrille::model
